"""The files next to the weights in a model folder: config, code, index, tokenizer, processor, card."""
