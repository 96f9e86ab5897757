"""The jobs behind the commands: compile, prepare, convert, detect, adapter. Prints nothing."""
