"""Batched operations behind the nonlocal NTK, registered as ``torch.library`` ops.

They import torch and Triton, and pydantic where a table of tuned configurations is read.

Each folder is one operation: ``__init__.py`` holds the public functions, ``reference.py`` their definition in plain
torch, ``cost.py`` their minimum work, ``triton/`` the kernels for a GPU, and ``README.md`` the mathematics, the data
flow and the limits. Importing any of these modules touches no device.
"""
