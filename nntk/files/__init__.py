"""Kernels in files."""
