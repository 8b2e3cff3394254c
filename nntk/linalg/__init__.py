"""Linear algebra with kernels that are never formed."""
