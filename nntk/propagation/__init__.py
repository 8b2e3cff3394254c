"""Difference propagation: a model's own forward pass, run on displaced tensors."""
