"""The judge of the contract: is a model's kernel right, or is the model refused by a clear sentence?"""

import copy
import io
import pickle
import random
import re
import warnings
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nntk

GAMMAS = (0.1, 1e-3)
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-9}
"""Largest relative Frobenius error of differences, unless plain float64 evaluation is worse."""
TIMES_ROUNDING = 8.0
"""Bound in multiples of the change that one unit in the last place of the parameters makes."""
KERNEL_FACTOR = 4.0
"""A kernel is quadratic in the differences, and is summed in the model's dtype."""

SUBJECTS = (
    "batch", "buffer", "differences", "function", "gamma", "inputs", "kernel", "layer", "model", "operator", "output",
    "outputs", "parameter", "parameters", "precision", "propagation", "samples", "scripted", "submodule", "x",
    "x1", "x2",
)  # fmt: skip
"""Words that name what is at fault: a refusal begins with one, after an article at most."""
INTERNAL_WORDS = (
    "functorch", "vmap", "jacrev", "functional_call", "got an unexpected", "expected all tensors", "nonetype",
    "has no attribute", "not subscriptable", "positional argument", "keyword argument", "internal assert",
    "please report",
    "displacedtensor", "gradtrackingtensor", "batchedtensor", "batchdim", "__torch_function__", "__torch_dispatch__",
    "dispatch key", "traceback", "c10::", "aten::", "aten.", "torch._c", "storage", "object is not", "list index",
    "keyerror", "stopiteration", "unpack", "inplace arithmetic", "modified by an inplace", "version counter",
)  # fmt: skip
"""Words of the library's or PyTorch's insides, in lower case, which a refusal must not contain."""


@dataclass
class Report:
    """Findings about one model, by column: ``"right"``, ``"refused: ..."``, ``"WRONG: ..."`` or ``"-"``."""

    columns: dict[str, str] = field(default_factory=dict)

    def note_repeat(self, is_equal):
        """Note whether a second call gave the same bits."""
        before = self.columns.get("repeats", "right")
        self.columns["repeats"] = before if is_equal else "WRONG: a repeat differs"

    @property
    def verdict(self) -> str:
        """Everything in one line: wrong if any column is, refused if any value is, else right."""
        for prefix in ("WRONG", "refused"):
            found = [f"{text} [{name}]" for name, text in self.columns.items() if text.startswith(prefix)]
            if found:
                return f"{prefix}: " + "; ".join(text.removeprefix(f"{prefix}: ") for text in found)
        return "right"


def judge(model, x, **settings):
    """Return the verdict on a model at inputs [N, ...]; see :func:`report` for the arguments."""
    return report(model, x, **settings).verdict


def report(model, x, *, gammas=GAMMAS, samples=8, seed=0, local=True, **settings):
    """Examine one model: values, repeats, the corner, the local NTK, and whether anything was changed.

    Args:
        model: An ``nn.Module`` with parameters of float32 or float64.
        x: Inputs, [N, ...].
        gammas: Length scales of the displacements.
        samples: Number of displacements.
        seed: Seed of the displacements.
        local: Examine the local NTK too.
        settings: Further settings of the kernel.

    Returns:
        The report.
    """
    result, dtype = Report(), next(model.parameters()).dtype
    before, usable = Snapshot(model, x), ways_that_work(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = seeded_outputs(model, x)
        evaluate, note = definition(model, x)
        Snapshot(model, x).restore_generators()
        before.restore_generators()
        for gamma in gammas:
            with asking(result, f"gamma {gamma:g}"):
                kernel = nntk.NonlocalNTK(model, gamma=gamma, samples=samples, seed=seed, **settings)
                judge_values(result, kernel, x, evaluate, f"gamma {gamma:g}", dtype, note)
        if local:
            judge_local(result, model, x, dtype)
        result.columns["unchanged"] = before.changes(model, x) or "right"
        broken = [way for way in usable if way not in ways_that_work(model)]
        result.columns["pickles"] = f"WRONG: no longer works: {', '.join(broken)}" if broken else "right"
        with suppress(Exception):
            if same(freeze(outputs), freeze(seeded_outputs(model, x))):
                return result
        if result.columns["unchanged"] == "right":
            result.columns["unchanged"] = "WRONG: the model's outputs are no longer the same"
    return result


@contextmanager
def asking(result, column):
    """Turn an exception into a refusal, if it is a clear one, or into a wrong answer."""
    try:
        yield
    except Exception as error:
        result.columns[column] = refusal(error)


def refusal(error):
    """Return ``"refused: ..."`` for an error that a user can act on, else ``"WRONG: internal error ..."``."""
    message = str(error)
    faults = []
    if not isinstance(error, ValueError | TypeError | MemoryError):
        faults.append("its type")
    words = re.findall(r"[\w.']+", message.lower().removeprefix("the ").removeprefix("a "))
    if not words or words[0].rstrip("'s.") not in SUBJECTS and words[0] not in SUBJECTS:
        faults.append("it names nothing first")
    if "\n" in message or len(re.findall(r"[.!?](?=\s+[A-Z]|$)", message)) > 3:
        faults.append("it is longer than a sentence or two")
    inside = [word for word in INTERNAL_WORDS if word in message.lower()]
    if inside:
        faults.append(f"words of insides: {', '.join(inside)}")
    text = f"{type(error).__name__}: {' '.join(message.split())}"
    return f"WRONG: internal error ({'; '.join(faults)}): {text[:300]}" if faults else f"refused: {text}"


def judge_values(result, kernel, x, evaluate, column, dtype, note):
    """Compare differences and kernel with the definition, a second call with the first, a corner with the whole."""
    differences, whole = kernel.differences(x), kernel(x)
    deltas = [kernel.displacements(m) for m in range(kernel.samples)]
    try:
        truth, disturbed = (differences_by_definition(evaluate, deltas, x, d) for d in (False, True))
    except Exception as error:
        result.columns[column] = f"WRONG: the model cannot be evaluated at one input, but has a kernel: {error}"
        return
    own = error_of(disturbed, truth)
    bound = max(TOLERANCES[dtype], TIMES_ROUNDING * own)
    lengths = torch.stack([sum(part.double().square().sum() for part in delta.values()) for delta in deltas])
    d = sum(part.numel() for part in deltas[0].values())
    expected = d / len(deltas) * torch.einsum("mnc,mkc,m->nk", truth, truth, 1 / lengths)
    wrong = []
    for name, actual, target, limit in (
        ("D", differences, truth, bound),
        ("K", whole, expected, KERNEL_FACTOR * bound),
        (
            "corner",
            kernel(x[: (len(x) + 1) // 2]),
            whole[: (len(x) + 1) // 2, : (len(x) + 1) // 2],
            KERNEL_FACTOR * bound,
        ),
    ):
        if actual.shape != target.shape:
            wrong.append(f"{name} has shape {tuple(actual.shape)}, not {tuple(target.shape)}")
        elif not (error := error_of(actual, target)) <= limit:
            wrong.append(f"{name} off by {error:.1e}")
    result.note_repeat(torch.equal(whole, kernel(x)) and torch.equal(differences, kernel.differences(x)))
    if differences.dtype != dtype or whole.dtype != dtype:
        wrong.append(f"the result is in {whole.dtype}")
    within = f" (to {bound:.0e}{note})" if bound > TOLERANCES[dtype] else ""
    result.columns[column] = f"WRONG: {', '.join(wrong)}{within}" if wrong else f"right{within}"


def judge_local(result, model, x, dtype):
    """Compare the local NTK with the Gram matrix of Jacobians by reverse-mode autograd, one input at a time."""
    plain = problem = None
    try:
        plain = gram(model, x, dtype)
    except Exception as error:
        problem = error
    try:
        actual = nntk.local_ntk(model, x)
    except Exception as error:
        verdict = refusal(error)
        cannot_be_trained = problem is not None and verdict.startswith("refused")
        result.columns["NTK limit"] = f"- {verdict}" if cannot_be_trained else verdict
        return
    if problem is not None:
        result.columns["NTK limit"] = f"WRONG: autograd has no gradient at one input, but there is a kernel: {problem}"
        return
    truth, limit = plain, KERNEL_FACTOR * 1e-4
    with suppress(Exception):
        truth = gram(model, x, torch.float64)
        limit = max(KERNEL_FACTOR * TOLERANCES[dtype], TIMES_ROUNDING * error_of(plain, truth))
    wrong = [] if (error := error_of(actual, truth)) <= limit else [f"off by {error:.1e}"]
    result.note_repeat(torch.equal(actual, nntk.local_ntk(model, x)))
    if actual.dtype != dtype:
        wrong.append(f"the result is in {actual.dtype}")
    result.columns["NTK limit"] = f"WRONG: {', '.join(wrong)}" if wrong else "right"


def error_of(actual, expected):
    """Return the Frobenius norm of the error over that of the expected: zero if both vanish."""
    error, size = float((actual.double() - expected.double()).norm()), float(expected.double().norm())
    return 0.0 if error == 0 else error / size if size else float("inf")


# The definition ------------------------------------------------------------------------------------------------------


def private_copy(model, dtype=None):
    """Return a deep copy, also of a model that holds results with a history (legacy weight norm, pruning) or a lock."""
    memo = {}
    for value in (value for module in model.modules() for value in vars(module).values()):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        elif not isinstance(value, Tensor | dict | bool | int | str | None):
            try:
                copy.deepcopy(value)
            except Exception:
                memo[id(value)] = value
    result = copy.deepcopy(model, memo)
    return result if dtype is None else result.to(dtype)


def definition(model, x):
    """Return the function ``(displacement, x) -> outputs`` that evaluates a fresh copy, and a note on its precision.

    It computes in float64 where the model can. Its second argument adds a disturbance of one unit in the last place.
    """
    dtype, note = torch.float64, ""
    try:
        seeded_outputs(model, x, dtype)
    except Exception:
        dtype, note = next(model.parameters()).dtype, ", it has no float64"
    lowest = lowest_precision(model, x, dtype)
    if lowest != torch.float64 and not note:
        note = f", it computes in {str(lowest).removeprefix('torch.')} within"
    template = private_copy(model, dtype)
    base = {name: parameter.detach() for name, parameter in template.named_parameters()}
    probe = private_copy(template)
    state = freeze_module(probe)
    with suppress(Exception):
        run(probe, cast(x[:1], dtype).clone())
    is_pure = same(state, freeze_module(probe))

    def evaluate(delta, one, disturb):
        values = {name: base[name] + part.to(dtype) for name, part in delta.items()}
        if disturb:
            generator = torch.Generator().manual_seed(0)
            for name, value in values.items():
                signs = torch.randint(0, 2, value.shape, generator=generator).to(dtype) * 2 - 1
                values[name] = value * (1 + signs * torch.finfo(lowest).eps)
        with torch.no_grad():
            fresh = template if is_pure else private_copy(template)
            output = functional_call(fresh, values, (cast(one, dtype).clone(),))
        return output.detach().double().reshape(1, -1)

    return evaluate, note


def differences_by_definition(evaluate, deltas, x, disturb):
    """Return the odd parts [f(x_n; theta + delta_m) - f(x_n; theta - delta_m)] / 2 input by input, [M, N, C]."""
    return torch.stack(
        [
            torch.cat(
                [
                    (evaluate(delta, x[n : n + 1], disturb) - evaluate(negative(delta), x[n : n + 1], False)) / 2
                    for n in range(len(x))
                ]
            )
            for delta in deltas
        ]
    )


def negative(delta):
    """Return the opposite displacement."""
    return {name: -part for name, part in delta.items()}


def cast(x, dtype):
    """Return floating inputs in a dtype, others as they are."""
    return x.to(dtype) if x.is_floating_point() else x


def run(model, x):
    """Return the outputs, without a gradient."""
    with torch.no_grad():
        return model(x)


def seeded_outputs(model, x, dtype=None):
    """Return the outputs of a copy under a fixed state of the generators, which are put back."""
    before = Snapshot(None, None)
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: B018
    try:
        return run(private_copy(model, dtype), (x if dtype is None else cast(x, dtype)).clone())
    finally:
        before.restore_generators()


class LowestPrecision(TorchDispatchMode):
    """Context that notes the least precise floating dtype of any result of more than one entry."""

    lowest = torch.float64

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() > 1:
                self.lowest = max(self.lowest, tensor.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return result


def lowest_precision(model, x, dtype):
    """Return the least precise floating dtype that a model in a dtype computes in."""
    probe, one = private_copy(model, dtype), cast(x[:1], dtype).clone()
    try:
        with LowestPrecision() as mode:
            run(probe, one)
    except Exception:
        return dtype
    return mode.lowest


def gram(model, x, dtype):
    """Return the local NTK, [N, N], from gradients of single outputs at single inputs; zero where there are none."""
    rows = []
    for n in range(len(x)):
        fresh = private_copy(model, dtype)
        outputs = fresh(cast(x[n : n + 1], dtype).clone()).reshape(-1)
        leaves = [parameter for parameter in fresh.parameters() if parameter.requires_grad]
        rows.append(torch.stack([gradient(one, leaves) for one in outputs]))
    jacobian = torch.stack(rows).double()
    return torch.einsum("ncd,kcd->nk", jacobian, jacobian)


def gradient(output, leaves):
    """Return the gradient of one output, [d]; zero for a parameter that it does not depend on."""
    found = [None] * len(leaves)
    if output.requires_grad:
        found = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, leaves, strict=True)])


# Nothing is changed --------------------------------------------------------------------------------------------------


def freeze(value):
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
    if isinstance(value, dict):
        return type(value), [(freeze(key), freeze(entry)) for key, entry in value.items()]
    if isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        return type(value), [freeze(entry) for entry in value]
    if isinstance(value, int | float | complex | str | bytes | torch.dtype | torch.device | torch.Size | None):
        return type(value), value
    if isinstance(value, weakref.ref):
        return weakref.ref, Identity(value())
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
