"""Description of models, functions and values by a text that is the same in every process."""

import dataclasses
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nntk.files.hashing import hash_tensors
from nntk.files.source import code_text, names_in

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), np.generic, torch.Size)
_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type)
_SETTINGS = (*_PLAIN, *_CODE, tuple)
_VALUES = (Tensor, np.ndarray, nn.Module, Mapping, Sequence, Set, enum.Enum)
_LIBRARIES = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "scipy", "nntk"}
"""Libraries whose functions and classes are known by their names."""
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_ENTRY_POINTS = frozenset({"__call__", "__getattr__", "__torch_function__", "forward", "setup_context"})
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_DEEPEST = 100
"""Largest depth of values in values; a deeper one is described by the name of its type."""
_LONGEST = 64
"""Longest text that is repeated in full; longer ones are replaced by their hash."""


class Describer:
    """Description of values by texts.

    What is described: plain values; tensors and arrays by their bytes; containers; modules by their layers; functions
    and methods of user code by their text, defaults, what they close over, and the globals that they name; objects by
    their class and attributes. Functions and classes of PyTorch, NumPy, SciPy, nntk and Python itself are described by
    their names, those of other installed packages by their text without globals. Anything else is described by the name
    of its type.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[int, str], int] = {}
        self._texts: dict[tuple[int, str], str] = {}
        self._kept: list[Any] = []  # A value that was freed would leave its id to another one.
        self._registered: set[int] = set()

    def module(self, model: nn.Module) -> str:
        """Describe a module: its layers by path, with their classes, settings, hooks and code; not its tensors.

        The mode of a layer, training or evaluation, counts where the code of its class uses it.

        Args:
            model: The module.

        Returns:
            The description.
        """
        self._registered |= {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        paths = {layer: path for path, layer in model.named_modules()}
        layers = []
        for layer, path in paths.items():
            children = [f"{name}={paths[child]!r}" for name, child in layer._modules.items() if child is not None]
            layers.append(f"{path!r}: {self._once(layer, self._layer)} {' '.join(children)}")
        return "; ".join(layers)

    def value(self, value: Any) -> str:
        """Describe any value.

        Args:
            value: The value.

        Returns:
            The description.
        """
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name}"
        if isinstance(value, np.generic):
            return f"{value.dtype} {value.item()!r}"
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return str(value)
        if isinstance(value, torch.device | types.ModuleType):
            return type(value).__name__
        return self._once(value, self._describe)

    def _describe(self, value: Any) -> str:
        if isinstance(value, Tensor | np.ndarray):
            return self._describe_numbers(value)
        if isinstance(value, nn.Module):
            return f"module {self.module(value)} with {hash_tensors(all_tensors(value))}"
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return f"method {self.value(value.__func__)} of {self.value(value.__self__)}"
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            return f"{_name(value)} of {self.value(owner)}" if isinstance(owner, Tensor | np.ndarray) else _name(value)
        if isinstance(value, functools.partial):
            return f"partial {self.value(value.func)} {self.value(value.args)} {self.value(value.keywords)}"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, Mapping):
            return f"{{{', '.join(sorted(f'{self.value(key)}: {self.value(item)}' for key, item in value.items()))}}}"
        if isinstance(value, Set):
            return f"{{{', '.join(sorted(Describer().value(item) for item in value))}}}"
        if isinstance(value, Sequence):
            return f"[{', '.join(map(self.value, value))}]"
        return self._object(value)

    def _once(self, value: Any, describe: Callable[[Any], str]) -> str:
        """Describe a value that has an identity, or name its depth where it is part of itself."""
        # A module is described as a value and as a layer of itself.
        key = (id(value), describe.__name__)
        if key in self._open:
            return f"#{self._open[key]}"
        if len(self._open) > _DEEPEST:
            return _name(type(value))
        if key not in self._texts:
            self._open[key] = len(self._open)
            self._kept.append(value)
            text = describe(value)
            del self._open[key]
            self._texts[key] = text if len(text) <= _LONGEST else hashlib.sha256(text.encode()).hexdigest()
        return self._texts[key]

    def _layer(self, layer: nn.Module) -> str:
        kind = type(layer)
        bases = [base for base in kind.__mro__ if base not in (nn.Module, object)]
        used = [vars(owner)[name] for owner, name in _used_attributes(bases)]
        names = frozenset[str]().union(*map(_names_in_attribute, used))
        # What forward writes and no code reads, such as activations that are kept, changes no output.
        written = frozenset[str]().union(*(_names_in_attribute(attribute, "written") for attribute in used)) - names
        parts = [self.value(kind), self.value(_attributes(layer, names, written))]
        parts += [self.value(list(getattr(layer, hooks).values())) for hooks in _HOOKS if getattr(layer, hooks)]
        if isinstance(code := getattr(layer, "code", None), str):
            parts.append(code)  # Of torch.fx and TorchScript, whose classes do not tell their code.
        if "training" in names:
            parts.append(f"training={layer.training}")
        return " ".join(parts)

    def _function(self, function: types.FunctionType) -> str:
        closure = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        if _is_library(function):
            return f"{_name(function)} {self.value(closure)}" if closure else _name(function)
        parts = [function.__qualname__, code_text(function.__code__)]
        parts += [self.value(part) for part in (function.__defaults__, function.__kwdefaults__, closure) if part]
        if "-packages" not in function.__code__.co_filename:
            names = sorted(names_in(function.__code__, "global") & function.__globals__.keys())
            parts += [f"{name}={self.value(function.__globals__[name])}" for name in names]
        return "function " + " ".join(parts)

    def _class(self, kind: type) -> str:
        """Describe a class by its name, and a user's class by the code and the settings that its entry points use."""
        owners = _user_classes(kind)
        if not owners:
            return _name(kind)
        parts = [kind.__qualname__, *(_name(base) for base in kind.__mro__ if base not in owners)]
        for owner, name in _used_attributes(owners):
            attribute = vars(owner)[name]
            attribute = attribute.fget if isinstance(attribute, property) else getattr(attribute, "__func__", attribute)
            parts.append(f"{owner.__qualname__}.{name}={self.value(attribute)}")
        return f"class {' '.join(parts)}"

    def _object(self, value: Any) -> str:
        kind = type(value)
        attributes = dict(getattr(value, "__dict__", {}))
        slots = [name for base in kind.__mro__ for name in _strings(getattr(base, "__slots__", ()))]
        attributes |= {name: getattr(value, name) for name in slots if hasattr(value, name)}
        if _is_library(kind):
            attributes = {name: part for name, part in attributes.items() if isinstance(part, (*_PLAIN, *_CODE))}
            attributes |= {name: getattr(value, name) for name in ("__name__", "code") if _is_text(value, name)}
        return f"object {self.value(kind)} {self.value(attributes)}"

    def _describe_numbers(self, value: Any) -> str:
        """Describe a tensor or an array by its bytes; a registered one has a name in the model's own hash."""
        if id(value) in self._registered:
            return "registered"
        if isinstance(value, Tensor):
            return f"tensor {hash_tensors({'': value})}"
        if value.dtype.hasobject:
            return f"array {value.shape} {self.value(value.tolist())}"
        return f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"


def _attributes(layer: nn.Module, names: Set[str], written: Set[str]) -> dict[str, Any]:
    """Return the attributes of a layer that its outputs may depend on, where its code reads and writes some names.

    Lists of weights and the like of PyTorch's layers follow from what is described. Objects that a user's code does not
    name, such as a trainer, belong to something else.
    """
    is_users = bool(_user_classes(type(layer)))

    def counts(name: str, value: Any) -> bool:
        if isinstance(value, _SETTINGS) or dataclasses.is_dataclass(value):
            return True
        return is_users and (name in names or callable(value) or isinstance(value, _VALUES))

    own = {name: value for name, value in vars(layer).items() if name not in _OF_EVERY_MODULE | written}
    return {name: value for name, value in own.items() if counts(name, value)}


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a module by name: parameters, buffers of both kinds, and what else its state holds.

    Args:
        model: The module.

    Returns:
        Tensors by name; one that is registered in several places has several names.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return state | parameters | dict(model.named_buffers(remove_duplicate=False))


def _used_attributes(owners: Sequence[type]) -> list[tuple[type, str]]:
    """Return the attributes of classes that their entry points use, directly or by way of others."""
    used: set[tuple[type, str]] = set()
    names, known = set(_ENTRY_POINTS), set(_ENTRY_POINTS)
    while names:
        new = {(owner, name) for owner in owners for name in names if name in vars(owner)}
        used |= new
        names = set[str]().union(*(_names_in_attribute(vars(owner)[name]) for owner, name in new)) - known
        known |= names
    return sorted(used, key=lambda pair: (owners.index(pair[0]), pair[1]))


def _names_in_attribute(attribute: Any, use: str = "read") -> frozenset[str]:
    """Return the names that the code of a method or of a property uses; none for any other attribute of a class."""
    function = attribute.fget if isinstance(attribute, property) else getattr(attribute, "__func__", attribute)
    function = getattr(function, "__wrapped__", function)
    return names_in(function.__code__, use) if isinstance(function, types.FunctionType) else frozenset()


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None) or type(value).__module__
    return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _user_classes(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if not _is_library(base)]


def _is_library(value: Any) -> bool:
    """Return whether the code of a function or of a class stands in one of the libraries."""
    names = getattr(value, "__globals__", None)
    module = getattr(value, "__module__", None) if names is None else names.get("__name__")
    return str(module).partition(".")[0] in _LIBRARIES


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_text(value: Any, name: str) -> bool:
    return isinstance(getattr(value, name, None), str)


def _strings(value: str | Iterable[str]) -> Iterable[str]:
    return (value,) if isinstance(value, str) else value
