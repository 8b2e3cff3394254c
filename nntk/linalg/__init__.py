"""Linear algebra of kernel matrices: operators that are never formed, ridge regression, alignment."""
