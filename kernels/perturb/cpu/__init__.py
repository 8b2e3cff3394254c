"""Perturbation evaluation on a CPU by kernels that Numba compiles and products of PyTorch.

Read in this order: config (tiles), launch (the op), program (what a lane runs), families (layer steps), kernel.
"""
