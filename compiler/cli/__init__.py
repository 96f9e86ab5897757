"""The command line: one module per command. Parses, calls a job, prints."""
