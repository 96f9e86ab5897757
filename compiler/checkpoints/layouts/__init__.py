"""The quantized layouts in folders of Transformers: one table, and what reads the stored tensors of each."""
