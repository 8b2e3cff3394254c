"""The local (ordinary) NTK."""
