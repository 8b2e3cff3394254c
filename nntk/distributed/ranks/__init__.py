"""Ranks: how they agree before and after work, how they stand in a mesh, and how work is dealt to them."""
