"""Rules of further functions of one or two values: angles, inverse hyperbolic and special functions, losses of digits.

Functions that few models call are evaluated in float64, which costs more time than a form in float32.
"""

from nntk.propagation.rules.special import angles, composites, smooth, subtracted

__all__ = ["angles", "composites", "smooth", "subtracted"]
