"""The random stream on a CPU by kernels that Numba compiles."""
