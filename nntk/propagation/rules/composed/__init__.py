"""Functions that are expressed by others which have rules: norms, attention, recurrent layers, activations, losses."""

from nntk.propagation.rules.composed import (
    attention,
    bags,
    losses,
    norms,
    packed,
    pools,
    products,
    recurrent,
    scans,
    shapes,
    units,
)

__all__ = [
    "attention", "bags", "losses", "norms", "packed", "pools", "products", "recurrent", "scans", "shapes", "units",
]  # fmt: skip
