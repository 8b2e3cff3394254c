"""State of a model, its inputs and the global generators: what a call must leave as it was."""

import copy
import io
import pickle
import random
import weakref
from dataclasses import dataclass
from types import FunctionType, MethodType

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor


def freeze(value, depth=0):
    """Return a value that can be compared later with :func:`same`, whatever happens to the original."""
    if isinstance(value, Tensor):
        kind = type(value), value.dtype, value.requires_grad, value.is_leaf, is_functorch_wrapped_tensor(value)
        try:
            return kind, value.detach().as_subclass(Tensor).clone()
        except Exception:  # It escaped from a transform, and has no value any more.
            return kind, Identity(value)
    if isinstance(value, torch.Generator):
        return torch.Generator, value.get_state()
    if isinstance(value, np.ndarray):
        return np.ndarray, torch.from_numpy(value.copy())
    if depth > 6:
        return type(value), Identity(value)
    if isinstance(value, dict):
        return type(value), [(freeze(key, depth + 1), freeze(entry, depth + 1)) for key, entry in value.items()]
    if isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        return type(value), [freeze(entry, depth + 1) for entry in value]
    if isinstance(value, int | float | complex | str | bytes | torch.dtype | torch.device | torch.Size | None):
        return type(value), value
    if isinstance(value, weakref.ref):
        return weakref.ref, Identity(value())
    is_code = isinstance(value, type | nn.Module | FunctionType | MethodType) or type(value).__module__.startswith(
        "torch"
    )
    if hasattr(value, "__dict__") and not is_code and depth < 4:
        return type(value), Identity(value), freeze(vars(value), depth + 1)
    # The object itself is kept, so that its identity cannot be that of a later one.
    return type(value), Identity(value)


@dataclass(eq=False)
class Identity:
    """An object that is compared by identity."""

    value: object


def same(first, second):
    """Return True if two frozen values are equal, tensors bit for bit but for NaN."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return first.shape == second.shape and torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))
    if isinstance(first, Identity):
        return first.value is second.value
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def freeze_module(model):
    """Return everything that modules hold, by place: values, and identities of parameters, buffers and submodules."""
    places = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            places |= {f"{path}.{name}": freeze(tensor) for name, tensor in module.state_dict().items()}
            continue
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    gradient = None if tensor is None else tensor.grad if tensor.is_leaf else None
                    places[f"{path}.{key}"] = [freeze(tensor), Identity(tensor), freeze(gradient)]
            elif name == "_modules":
                places[f"{path}.{name}"] = [(key, Identity(child)) for key, child in value.items()]
            else:
                places[f"{path}.{name}"] = freeze(value)
    return list(places.items())


class Snapshot:
    """State of a model, its inputs and the global generators at one time."""

    def __init__(self, model, x):
        self.model = None if model is None else freeze_module(model)
        self.x = None if x is None else freeze(x)
        self.generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self.modes = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()

    def restore_generators(self):
        """Put the global generators back."""
        torch.set_rng_state(self.generators[0])
        np.random.set_state(self.generators[1])
        random.setstate(self.generators[2])

    def changes(self, model, x):
        """Return ``"WRONG: ..."`` with what has changed since, or an empty string."""
        now, found = Snapshot(model, x), []
        before, after = dict(self.model), dict(now.model)
        found += [f"{place} is gone" for place in before.keys() - after.keys()]
        found += [f"{place} is new" for place in after.keys() - before.keys()]
        found += [f"{place} changed" for place in before.keys() & after.keys() if not same(before[place], after[place])]
        found += [] if same(self.x, now.x) else ["the inputs changed"]
        names = "torch's generator", "numpy's generator", "python's generator"
        found += [
            f"{name} moved"
            for name, old, new in zip(names, self.generators, now.generators, strict=True)
            if not same(freeze(old), freeze(new))
        ]
        found += [] if self.modes == now.modes else ["a global mode changed"]
        return f"WRONG: {', '.join(sorted(found)[:4])}" if found else ""


def ways_that_work(model):
    """Return which of copying, pickling, saving and printing a model work."""
    ways = {
        "deepcopy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.dumps(model),
        "torch.save": lambda: torch.save(model.state_dict(), io.BytesIO()),
        "repr": lambda: [repr(model), *(repr(value) for m in model.modules() for value in vars(m).values())],
    }
    working = []
    for name, way in ways.items():
        try:
            way()
            working.append(name)
        except Exception:  # noqa: S110
            pass
    return working
