"""Tokenizer files: finding them, and building a `tokenizer.json` from sentencepiece or tiktoken files."""
