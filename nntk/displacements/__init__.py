"""Displacements of the parameters: their lengths and their weights."""
