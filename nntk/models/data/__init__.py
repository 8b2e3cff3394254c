"""What goes into a model and what comes out: inputs of one or several tensors, and the choice among its outputs."""
