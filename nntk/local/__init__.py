"""The local (ordinary) NTK, by gradients."""
