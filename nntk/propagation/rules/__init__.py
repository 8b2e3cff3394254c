r"""Rules of PyTorch's functions: the difference of a function's value over s, without cancellation.

Let a and b be values with the unit differences da and db, so that the displaced values are a + s da and b + s db. A
linear function has the difference f(da), a product da b + (a + s da) db. Layers use the layer step of
:mod:`nntk.kernels.perturb`, activations the difference forms of their classes; norms and attention are composed of
these. Importing this package registers all rules in the tables of :mod:`nntk.propagation.registry`.
"""

from nntk.propagation.rules import (
    arithmetic,
    bilinear,
    composed,
    elementwise,
    in_place,
    jumps,
    layers,
    linear,
    matrices,
    pooling,
    queries,
    scattering,
    selection,
    softmax,
    special,
    spectra,
)

__all__ = [
    "arithmetic",
    "bilinear",
    "composed",
    "elementwise",
    "in_place",
    "jumps",
    "layers",
    "linear",
    "matrices",
    "pooling",
    "queries",
    "scattering",
    "selection",
    "softmax",
    "special",
    "spectra",
]
