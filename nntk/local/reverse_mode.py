"""Gradients by plain reverse mode, ``torch.autograd.grad``: the definition that every other method is held against."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from nntk.local.agreement import fixed_weights, relative_difference
from nntk.local.evaluation import Evaluation
from nntk.models.data.inputs import Batch, map_tensors, named_tensors

_FEW_OUTPUTS = 4
"""Number of outputs up to which one backward pass after another is as fast as a batch of them."""


def weighted_gradient(evaluation: Evaluation, x: Batch, weights: Tensor) -> Tensor:
    r"""Return the gradient :math:`\nabla_\theta \sum_{nc} w_{nc} f_c(x_n)` by one backward pass.

    Args:
        evaluation: The model.
        x: Inputs, [n, ...].
        weights: The weights w, [n, C].

    Returns:
        [d] in the dtype of the parameters; parameters that the outputs do not depend on have gradient zero.
    """
    return weighted_gradients(evaluation, x, weights[None])[0]


def weighted_gradients(evaluation: Evaluation, x: Batch, weights: Tensor) -> Tensor:
    """Return K weighted gradients, [K, d], by as many backward passes from one forward pass.

    Args:
        evaluation: The model.
        x: Inputs, [n, ...].
        weights: The weights, [K, n, C].
    """
    return _pull_back(evaluation, x, lambda outputs, leaves: _gradients(outputs, leaves, weights))


@contextmanager
def reverse_errors() -> Iterator[None]:
    """Raise errors of plain backward passes as those of a model that has no local NTK."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        # PyTorch's text on functions in place is a page on its insides.
        reason = str(error).replace("aten::", "")
        if "inplace" in reason:
            reason = "a function in place changes what the gradient needs"
        raise ValueError(
            f"model must be differentiable for its local NTK, but PyTorch's autograd fails: {reason.rstrip('.')}; "
            "nntk.NonlocalNTK needs no gradient."
        ) from error


class ReverseJacobian:
    """Function that computes Jacobians an input at a time, each by backward passes from its outputs.

    Args:
        evaluation: The model.
        chunk_size: Number of outputs that are differentiated at once, where autograd allows it.
    """

    def __init__(self, evaluation: Evaluation, chunk_size: int) -> None:
        self._evaluation, self._chunk_size = evaluation, chunk_size
        self._allows_batches = chunk_size > _FEW_OUTPUTS

    def __call__(self, x: Batch) -> Tensor:
        """Return the Jacobians at inputs [n, ...], as [n, C, d]."""
        first = _pull_back(self._evaluation, x[:1], self._rows)
        jacobians = first.new_empty(len(x), *first.shape)
        jacobians[0] = first
        for index in range(1, len(x)):
            jacobians[index] = _pull_back(self._evaluation, x[index : index + 1], self._rows)
        return jacobians

    def _rows(self, outputs: Tensor, leaves: list[Tensor]) -> Tensor:
        basis = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)[:, None]
        if self._allows_batches and outputs.shape[1] > _FEW_OUTPUTS and outputs.requires_grad:
            rows = self._rows_of_batches(outputs, leaves, basis)
            if rows is not None:
                return rows
            self._allows_batches = False
        return _gradients(outputs, leaves, basis)

    def _rows_of_batches(self, outputs: Tensor, leaves: list[Tensor], basis: Tensor) -> Tensor | None:
        """Return all rows by batches of backward passes; None if that is impossible, or one pass contradicts it."""
        try:
            rows = torch.cat([_batch_of_gradients(outputs, leaves, some) for some in basis.split(self._chunk_size)])
        except Exception:  # A backward function may raise anything under vmap; plain passes follow.
            return None
        weights = fixed_weights(1, len(basis), outputs)
        expected = _gradients(outputs, leaves, weights[None])[0]
        difference = relative_difference((weights @ rows)[0], expected)
        return rows if difference <= self._evaluation.tolerance else None


def _pull_back(evaluation: Evaluation, x: Batch, then: Callable[[Tensor, list[Tensor]], Tensor]) -> Tensor:
    """Return ``then(outputs, leaves)`` for outputs that depend on new leaves of autograd, the parameters."""

    def apply(inputs: Batch) -> Tensor:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in evaluation.parameters.items()}
        return evaluation.apply(leaves, inputs, lambda outputs: then(outputs, list(leaves.values())))

    with torch.enable_grad():
        if any(tensor.is_floating_point() for _, tensor in named_tensors("x", x)):
            # A reentrant checkpoint passes gradients on only if its inputs require one.
            try:
                return apply(map_tensors(_leaf, x.detach())).detach()
            except RuntimeError:
                pass  # The model reads the numbers of its inputs, or does without their gradient.
        return apply(x.detach()).detach()


def _leaf(tensor: Tensor) -> Tensor:
    """Return a floating tensor as a leaf of autograd, and any other one as it is."""
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def _gradients(outputs: Tensor, leaves: list[Tensor], cotangents: Tensor) -> Tensor:
    """Return the gradients of outputs [n, C] weighted by each of some cotangents [K, n, C], as [K, d]."""
    if not outputs.requires_grad:
        return outputs.new_zeros(len(cotangents), sum(leaf.numel() for leaf in leaves))
    nodes = _nodes(outputs)
    # A function written in Python, such as a reentrant checkpoint, may itself call backward(), which leaves gradients
    # with the leaves; torch.autograd.grad does not see them.
    if any(isinstance(node, BackwardCFunction) for node in nodes):
        with _gradients_kept(nodes, leaves):
            return torch.stack([_accumulated_gradient(outputs, leaves, cotangent) for cotangent in cotangents])
    return torch.stack([_gradient(outputs, leaves, cotangent) for cotangent in cotangents])


def _nodes(outputs: Tensor) -> set[Any]:
    """Return the nodes of the graph that the outputs were computed by."""
    found, remaining = set(), [outputs.grad_fn]
    while remaining:
        node = remaining.pop()
        if node is not None and node not in found:
            found.add(node)
            remaining += [following for following, _ in node.next_functions]
    return found


@contextmanager
def _gradients_kept(nodes: set[Any], leaves: list[Tensor]) -> Iterator[None]:
    """Restore the gradients of leaves other than the parameters, such as those of a module in a closure."""
    others = [node.variable for node in nodes if hasattr(node, "variable")]
    before = [(leaf, leaf.grad) for leaf in others if all(leaf is not counted for counted in leaves)]
    for leaf, _ in before:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, gradient in before:
            leaf.grad = gradient


def _gradient(outputs: Tensor, leaves: list[Tensor], cotangent: Tensor) -> Tensor:
    parts = torch.autograd.grad(outputs, leaves, cotangent, retain_graph=True, allow_unused=True)
    return _flat(parts, leaves)


def _batch_of_gradients(outputs: Tensor, leaves: list[Tensor], cotangents: Tensor) -> Tensor:
    parts = torch.autograd.grad(
        outputs, leaves, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    return torch.cat(
        [
            (leaf.new_zeros(size) if part is None else part.detach()).reshape(size)
            for part, leaf in zip(parts, leaves, strict=True)
            for size in [(len(cotangents), leaf.numel())]
        ],
        dim=1,
    )


def _accumulated_gradient(outputs: Tensor, leaves: list[Tensor], cotangent: Tensor) -> Tensor:
    for leaf in leaves:
        leaf.grad = None
    outputs.backward(cotangent, retain_graph=True)
    return _flat([leaf.grad for leaf in leaves], leaves)


def _flat(parts: Sequence[Tensor | None], leaves: list[Tensor]) -> Tensor:
    """Return gradients as one vector [d]; those of an embedding may be sparse."""
    return torch.cat(
        [
            leaf.new_zeros(leaf.numel()) if part is None else part.detach().to_dense().reshape(-1)
            for part, leaf in zip(parts, leaves, strict=True)
        ]
    )
