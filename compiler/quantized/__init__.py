"""Quantized layouts as data: what is stored, the op that makes numbers of it, and its kernel in torch."""
