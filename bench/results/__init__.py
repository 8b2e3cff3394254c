"""Results: the layout of a run's file, where it is kept, and how two runs compare."""
