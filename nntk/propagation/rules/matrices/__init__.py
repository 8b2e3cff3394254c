"""Rules of functions of matrices: solutions of linear systems, inverses, determinants, exponentials and factors.

They are evaluated in float64, because a system with a condition number of c loses a factor of c of the digits.
Products with sparse matrices are evaluated in the dtype of the differences.
"""

from nntk.propagation.rules.matrices import determinants, factors, functions, sparse, systems

__all__ = ["determinants", "factors", "functions", "sparse", "systems"]
