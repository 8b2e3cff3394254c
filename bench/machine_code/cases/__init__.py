"""The kernels that are compiled and judged without a GPU, one module for each op."""
