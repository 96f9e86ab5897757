"""Reading checkpoints: headers, indices and config files, without executing anything and without reading tensor data."""
