"""Kernels on disk: tensors with the settings that reproduce them, and matrices larger than the memory."""
