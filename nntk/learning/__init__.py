"""Learning with kernels: regression, gaussian processes, training."""
