"""Path B: the model and config modules of a custom architecture, rendered from blocks."""
