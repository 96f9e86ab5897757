"""The tensor operations: shape rule, inverse and kernel of each. One module per group of ops; `algebra` is what they share."""
