"""What a person sees on a terminal: problems, colours, links, a progress bar, and help with wrong usage."""
