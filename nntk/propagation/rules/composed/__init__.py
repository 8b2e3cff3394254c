"""Functions that are expressed by others which have rules: norms, attention, recurrent layers, activations."""

from nntk.propagation.rules.composed import attention, norms, pools, products, recurrent, units

__all__ = ["attention", "norms", "pools", "products", "recurrent", "units"]
