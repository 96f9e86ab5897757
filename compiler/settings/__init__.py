"""What is given: arguments and facts from config files, the checkpoint, --set and released models, and what they contradict."""
