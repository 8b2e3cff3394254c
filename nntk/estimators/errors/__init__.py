"""Error bars of kernels: groups of displacements, whose scatter shows the Monte-Carlo error."""
