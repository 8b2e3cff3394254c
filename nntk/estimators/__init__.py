"""Estimators: from differences and their weights to a kernel, its features, its error bars and its memory plan."""
