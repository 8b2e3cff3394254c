"""Observer of a forward pass: random numbers, what is read, and the dtypes that values are computed in."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Watched(Protocol):
    """A model as its observer knows it.

    Attributes:
        names: Names of the displaced parameters.
        device: Device of the parameters.
        halves: Dtypes in half precision of frozen parameters.
    """

    @property
    def names(self) -> dict[int, str]:
        """Names of the displaced parameters."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        ...

    @property
    def halves(self) -> frozenset[torch.dtype]:
        """Dtypes in half precision of frozen parameters."""
        ...

    def displaced_storages(self) -> set[int]:
        """Return the addresses of the memory of the displaced parameters."""
        ...


class Watch:
    """Observer of operators: which of them draw random numbers, what they read, and in which dtypes they compute."""

    def __init__(self, model: Watched, dtype: torch.dtype, tensors: dict[str, Tensor]) -> None:
        self.device, self.lowest, self.random_operator = model.device, dtype, ""
        self.lowest_displaced = dtype
        # Tensors that depend on displaced parameters, by identity, where others are in half precision.
        displaced = [tensors[name] for name in model.names.values()] if model.halves else []
        self._displaced: dict[int, Tensor] | None = {id(t): t for t in displaced} if model.halves else None
        self.reads_originals, self.bytes = False, 0
        self._originals = model.displaced_storages()
        self._state = self._generator_state()

    def _generator_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def _is_original(self, leaf: Any) -> bool:
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
            return False
        try:
            return leaf.untyped_storage().data_ptr() in self._originals
        except (RuntimeError, NotImplementedError):  # A tensor of a transform of torch.func has no memory of its own.
            return False

    def _depends(self, arguments: Any, options: Any, result: Any) -> bool:
        """Return True if a result depends on displaced parameters; without frozen halves all results count."""
        if self._displaced is None:
            return True
        if not any(id(leaf) in self._displaced for leaf in tree_leaves((arguments, options))):
            return False
        self._displaced |= {id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return True

    def __call__(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        """Look at an operator that was run."""
        if isinstance(result, Tensor):
            self.bytes += result.numel() * result.itemsize
            if result.dtype in _FLOATS[_FLOATS.index(self.lowest) + 1 :]:
                self.lowest = result.dtype
            is_lower = result.dtype in _FLOATS[_FLOATS.index(self.lowest_displaced) + 1 :]
            if self._depends(arguments, options, result) and is_lower:
                self.lowest_displaced = result.dtype
        if not self.reads_originals:
            self.reads_originals = any(map(self._is_original, tree_leaves(arguments)))
        # Operators with this tag may draw from the global generator; a dropout with probability zero does not.
        if torch.Tag.nondeterministic_seeded in function.tags and not self.random_operator:
            state = self._generator_state()
            if not torch.equal(state, self._state):
                self.random_operator = function.overloadpacket.__name__
            self._state = state
