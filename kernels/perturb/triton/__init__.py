"""Triton kernels of this op: the kernels, their configurations and their launcher."""
