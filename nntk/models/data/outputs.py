"""Choice of the tensor that counts among what a model returns."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Output = str | int | Callable[[Any], Tensor] | None
"""Choice as callers give it: a key or an attribute, an index, a function, or None for a tensor or ``"logits"``."""

_FOUND_BY_ITSELF = "logits"


@dataclass(frozen=True)
class OutputChoice:
    """Function from what a model returns to the tensor that counts.

    Attributes:
        output: Key of a mapping or name of an attribute, index of a tuple, or a function; None for a tensor as it is,
            or for ``"logits"`` of a mapping or dataclass.

    Raises:
        TypeError: If ``output`` is of another type.
    """

    output: Output = None

    def __post_init__(self) -> None:
        is_bool = isinstance(self.output, bool)
        if is_bool or not (self.output is None or isinstance(self.output, str | int) or callable(self.output)):
            raise TypeError(
                "output must be a key, an index or a function of what the model returns, or None; got "
                f"{self.output!r} ({type(self.output).__name__})."
            )

    def __call__(self, returned: Any) -> Any:
        """Return the tensor that counts.

        Args:
            returned: What the model returned.

        Returns:
            The tensor; what is no tensor where nothing could be chosen, which the caller refuses.

        Raises:
            TypeError: If the model's return value has no such key, attribute or index.
        """
        if callable(self.output):
            return self.output(returned)
        names = _names(returned)
        if self.output is None:
            return returned if _FOUND_BY_ITSELF not in names else _item(returned, _FOUND_BY_ITSELF)
        if isinstance(self.output, int) and isinstance(returned, tuple | list):
            if -len(returned) <= self.output < len(returned):
                return returned[self.output]
        elif isinstance(self.output, str) and self.output in names:
            return _item(returned, self.output)
        raise TypeError(f"output must choose among what the model returns, {outline(returned)}; got {self.output!r}.")


def outline(returned: Any) -> str:
    """Return a description of what a model returned, for messages."""
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    kind = type(returned).__name__
    if isinstance(returned, tuple | list) and not _names(returned):
        return f"{kind} of {len(returned)}"
    names = _names(returned)
    return f"{kind} with {', '.join(map(repr, names))}" if names else kind


def _names(returned: Any) -> list[str]:
    """Return the keys of a mapping, or the fields of a dataclass or a named tuple."""
    if isinstance(returned, Mapping):
        return [key for key in returned if isinstance(key, str)]
    if dataclasses.is_dataclass(returned):
        return [field.name for field in dataclasses.fields(returned)]
    return list(getattr(returned, "_fields", ()))


def _item(returned: Any, name: str) -> Any:
    return returned[name] if isinstance(returned, Mapping) else getattr(returned, name)
