"""Triton kernels of perturbation evaluation, with their configurations and their launcher.

Read the files in the order in which each builds on those before it:

1. ``config.py`` chooses the path and the tile sizes of a layer;
2. ``chunks.py`` divides the work such that its buffers fit the budget;
3. ``operands.py`` holds the settings of an evaluation, and makes the operands that the kernels read;
4. ``unperturbed.py`` evaluates the network without displacements, in float64;
5. ``group.py`` generates the noise vectors of a group of displacements;
6. ``layers.py`` launches one kernel a layer, ``fused.py`` one kernel for a whole small network;
7. ``launch.py`` is the entry point: the two ops for CUDA tensors;
8. ``kernel.py`` holds the kernels of the layers, ``activations.py`` the differences of the activations that they use;
9. ``passes.py`` holds the kernels around them.
"""
