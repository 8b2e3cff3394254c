"""Results: the layout of a run's file, its writing and reading, and the comparison of two runs."""
