"""Where the bytes of a tensor lie: arrangements, and the copies that turn one into another. Imports nothing of mapspec but the base modules."""
