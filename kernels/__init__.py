"""Batched operations behind the nonlocal NTK, as ``torch.library`` ops. Imports torch (and Triton) only.

Each folder is one operation: ``__init__.py`` is the public function, ``reference.py`` its definition in plain torch,
``README.md`` the mathematics and the cost. Importing any of them touches no device.
"""
