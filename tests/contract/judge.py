"""The judge of the contract: is a model's kernel right, or is the model refused by a clear sentence?"""

import re
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from definition import Definition, seeded_outputs
from snapshot import Snapshot, freeze, same, ways_that_work

import nntk

GAMMAS = (0.1, 1e-3)
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-9}
"""Largest relative Frobenius error of differences, unless plain float64 evaluation is worse."""
TIMES_ROUNDING = 8.0
"""Bound in multiples of the change that one unit in the last place of the parameters makes."""
SINGLE, SINGLE_WITH_JUMPS = 1e-3, 0.1
"""The same for displaced copies in float32, which are taken where that is nothing beside the Monte-Carlo error: a few
numbers may be on the wrong side of a jump."""
KERNEL_FACTOR = 4.0
"""A kernel is quadratic in the differences, and is summed in the model's dtype."""

SUBJECTS = (
    "batch", "buffer", "differences", "function", "gamma", "inputs", "kernel", "layer", "model", "operator", "output",
    "outputs", "parameter", "parameters", "precision", "propagation", "samples", "scripted", "submodule", "x",
    "x1", "x2",
)  # fmt: skip
"""Words that name what is at fault: a refusal begins with one, after an article at most."""
INTERNAL_WORDS = (
    "functorch", "vmap", "jacrev", "functional_call", "got an unexpected", "expected all tensors", "'nonetype'",
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
        outputs, again = seeded_outputs(model, x), seeded_outputs(model, x)
        definition = Definition(model, x)
        for gamma in gammas:
            with asking(result, f"gamma {gamma:g}"):
                column = f"gamma {gamma:g}"
                kernel = nntk.NonlocalNTK(model, gamma=gamma, samples=samples, seed=seed, **settings)
                if judge_values(result, kernel, definition, column, dtype) and "propagation" not in settings:
                    exact = nntk.NonlocalNTK(
                        model, gamma=gamma, samples=samples, seed=seed, propagation="direct", **settings
                    )
                    judge_values(result, exact, definition, column, dtype)
        if local:
            judge_local(result, definition, dtype)
        result.columns["unchanged"] = before.changes(model, x) or "right"
        broken = [way for way in usable if way not in ways_that_work(model)]
        result.columns["pickles"] = f"WRONG: no longer works: {', '.join(broken)}" if broken else "right"
        with suppress(Exception):
            repeats = same(freeze(outputs), freeze(again))
            if not repeats or same(freeze(outputs), freeze(seeded_outputs(model, x))):
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


def judge_values(result, kernel, definition, column, dtype):
    """Compare differences and kernel with the definition, a second call with the first, a corner with the whole.

    Returns:
        True if what was judged, and found right, are displaced copies in float32 that the kernel chose by itself.
    """
    x = definition.x
    differences, whole = kernel.differences(x), kernel(x)
    deltas = [kernel.displacements(m) for m in range(kernel.samples)]
    try:
        truth, disturbed = (definition.differences(deltas, disturb) for disturb in (False, True))
    except Exception as error:
        result.columns[column] = f"WRONG: the model cannot be evaluated at one input, but has a kernel: {error}"
        return False
    own = error_of(disturbed, truth)
    plan = kernel.plan(x)
    is_single = kernel.propagation == "auto" and dtype == torch.float32 and plan.route == "copies"
    is_single = is_single and plan.precision == "fp32"
    jumps = any(findings.jumps for findings in kernel._findings.values())
    single = SINGLE_WITH_JUMPS if jumps else SINGLE
    bound = max(single if is_single else TOLERANCES[dtype], TIMES_ROUNDING * own)
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
    within = f" (to {bound:.0e}{definition.note})" if bound > TOLERANCES[dtype] else ""
    result.columns[column] = f"WRONG: {', '.join(wrong)}{within}" if wrong else f"right{within}"
    return is_single and not wrong


def judge_local(result, definition, dtype):
    """Compare the local NTK with the Gram matrix of Jacobians by reverse-mode autograd, one input at a time."""
    model, x, plain, problem = definition.model, definition.x, None, None
    try:
        plain = definition.gram(dtype)
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
        truth = definition.gram(torch.float64)
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
