"""Isolation of a model: evaluation on private copies, and a probe of what else a forward pass does."""
