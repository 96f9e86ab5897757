"""Plan to bytes: copies for what moves, kernels for what computes, on the CPU or a GPU."""
