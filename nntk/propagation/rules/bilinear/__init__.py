"""Functions that are linear in each of two operands, and the rounding of operands to a precision."""

from nntk.propagation.rules.bilinear import operands, products

__all__ = ["operands", "products"]
