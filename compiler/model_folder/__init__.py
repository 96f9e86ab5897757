"""What lies beside the weights in a model folder: config, code, index, tokenizer, card."""
