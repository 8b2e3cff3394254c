"""What the launchers of kernels on a GPU share."""
