"""One module per file format: safetensors, torch.save (zip and legacy), GGUF, torch.distributed.checkpoint."""
