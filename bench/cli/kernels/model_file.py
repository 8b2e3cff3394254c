"""Models and data that a command is given as files: ``MODEL.py:function`` and arrays of NumPy or safetensors."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nntk import BlackBox, Inputs
from nntk.bench.cli.options import CommandError, one_line_errors

_ARRAYS = (".npy", ".npz", ".safetensors")


@dataclass(frozen=True)
class LoadedModel:
    """Model of a file.

    Attributes:
        model: A module, a black box, or a function ``f(parameters, x)``.
        parameters: Tensors of a function by name; None for the other kinds.
    """

    model: Any
    parameters: Mapping[str, Tensor] | None = None

    def to(self, device: torch.device) -> "LoadedModel":
        """Return the model with its tensors on a device, in evaluation mode; a black box stays where it is."""
        if isinstance(self.model, nn.Module):
            return LoadedModel(self.model.eval().to(device))
        if self.parameters is not None:
            return LoadedModel(self.model, {name: tensor.to(device) for name, tensor in self.parameters.items()})
        return self


def load_model(text: str) -> LoadedModel:
    """Load the model that ``FILE.py:NAME`` stands for.

    Args:
        text: The file, and the name in it of a module, a black box, or a function without arguments that returns one of
            them, or a function ``f(parameters, x)`` together with its tensors by name. The file's folder can be
            imported from.

    Returns:
        The model.

    Raises:
        CommandError: If the file or the name is not there, the file fails, or it gives something else.
    """
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise CommandError(f"argument MODEL: must be FILE.py:NAME, got {text!r}")
    file = Path(path).resolve()
    if not file.is_file():
        raise CommandError(f"argument MODEL: {path} is not a file")
    with one_line_errors(CommandError, prefix="argument MODEL: "):
        given = load_name(file, name)
    if not isinstance(given, nn.Module | BlackBox) and callable(given):
        try:
            given = given()
        except Exception as error:  # The user's code may raise anything.
            raise CommandError(f"argument MODEL: {text} fails: {type(error).__name__}: {error}") from error
    if isinstance(given, nn.Module | BlackBox):
        return LoadedModel(given)
    if isinstance(given, tuple) and len(given) == 2 and callable(given[0]) and isinstance(given[1], Mapping):
        return LoadedModel(*given)
    raise CommandError(
        f"argument MODEL: {text} must give a module, a nntk.BlackBox, or a function f(parameters, x) with its tensors "
        f"by name; got {type(given).__name__}"
    )


def load_name(file: Path, name: str) -> Any:
    """Run a file of Python as a module of its own, which imports from its folder, and return what a name of it is.

    Args:
        file: The file.
        name: A name that it defines.

    Returns:
        Its value.

    Raises:
        CommandError: If the file fails or does not define the name.
    """
    # No file takes the place of a module that another one imports, as one with the name torch.py would.
    module_name = f"nntk_model_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None, "a file of Python has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # Dataclasses and pickles look their module up.
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # The user's code may raise anything.
        raise CommandError(f"{file.name} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    contents = vars(module)
    if name not in contents:
        functions = sorted(key for key, value in contents.items() if callable(value) and not key.startswith("_"))
        raise CommandError(f"{file.name} has no {name!r}; it has {', '.join(functions) or 'no functions'}")
    return contents[name]


def load_inputs(path: Path, keys: Sequence[str], argument: str) -> Tensor | Inputs:
    """Load the inputs of a model: one array, or several that are its arguments by their names.

    Args:
        path: File of NumPy (.npy, .npz) or of safetensors.
        keys: Names of the arrays in a file that holds several; none for the only one.
        argument: Name of the argument, for messages.

    Returns:
        The tensor, [N, ...], or several as ``nntk.Inputs``.

    Raises:
        CommandError: If the file is not there or none of these kinds, a name is missing or not in it, or the arrays
            have different numbers of rows.
    """
    if len(keys) < 2:
        return load_array(path, keys[0] if keys else None, argument)
    with one_line_errors(ValueError, TypeError, prefix=f"argument {argument}: "):
        return Inputs(**{key: load_array(path, key, argument) for key in keys})


def load_array(path: Path, key: str | None, argument: str) -> Tensor:
    """Load an array as a tensor on the CPU; that of a .npy or .safetensors file stays on disk until it is read.

    Args:
        path: File of NumPy (.npy, .npz) or of safetensors.
        key: Name of the array in a file that holds several; None for the only one.
        argument: Name of the argument, for messages.

    Returns:
        The tensor, [N, ...].

    Raises:
        CommandError: If the file is not there or none of these kinds, or the name is missing or not in it.
    """
    if path.suffix not in _ARRAYS:
        raise CommandError(f"argument {argument}: must be a file {', '.join(_ARRAYS)}; got {str(path)!r}")
    if not path.is_file():
        raise CommandError(f"argument {argument}: {path} is not a file")
    try:
        if path.suffix == ".npy":
            # Pages of a private mapping are read when they are used; nothing is written to the file.
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return torch.from_numpy(arrays[_key(arrays.files, key, path, argument)])
        from safetensors import safe_open

        with safe_open(path, "pt") as tensors:
            tensor: Tensor = tensors.get_tensor(_key(list(tensors.keys()), key, path, argument))
            return tensor
    except ImportError as error:
        raise CommandError(f"argument {argument}: {path} needs safetensors: pip install 'nntk[store]'") from error
    except CommandError:
        raise
    except Exception as error:  # Readers raise errors of many kinds on broken files.
        raise CommandError(f"argument {argument}: {path} cannot be read: {type(error).__name__}: {error}") from error


def _key(names: list[str], key: str | None, path: Path, argument: str) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key in names:
        return str(key)
    wanted = "--key must name one of them" if key is None else f"--key must be one of them, got {key!r}"
    raise CommandError(f"argument {argument}: {path} holds {', '.join(names) or 'nothing'}; {wanted}")
