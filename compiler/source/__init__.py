"""What a user names as a source, opened as one checkpoint: files in parts, ranks of trainers, several named sources."""
