"""Estimators: from differences and weights to a kernel and its error."""
