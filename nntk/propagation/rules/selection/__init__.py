"""Rules of comparisons and of places of the largest values, whose outcomes are booleans and integers.

The outcomes are discrete displaced tensors; a cast to a floating dtype makes ordinary displaced values of them.
"""

from nntk.propagation.rules.selection import casts, comparison, lookup, masks, order, thresholds

__all__ = ["casts", "comparison", "lookup", "masks", "order", "thresholds"]
