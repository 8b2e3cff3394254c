r"""Attribution of outputs to training data, for models with and without gradients.

TRAK (Park et al. 2023) attributes an output of a trained model to its training examples by linear regression in the
space of projected gradients. Projection on normal directions and division by their length is what the energy form does
with differences: its features tend to TRAK's as gamma falls, and exist where no gradient does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from nntk.kernel import NonlocalNTK
from nntk.kernels import checks
from nntk.linalg import ridge
from nntk.linalg.vectors import check_real


def attribution_scores(
    kernels: NonlocalNTK | Sequence[NonlocalNTK],
    x: Tensor,
    targets: Tensor,
    new: Tensor,
    new_targets: Tensor | None = None,
    *,
    alpha: float = 0.1,
) -> Tensor:
    r"""Score the training examples of a model by their influence on its outputs at other inputs.

    The output of a classifier at an input with label y is the margin, :math:`o = \log p_y - \log (1 - p_y)`, and that
    of a regression its value. With features a of the output (its differences over all displacements, scaled like those
    of the energy form), the score of training example n for the output at x is

    .. math::
        \tau_n(x) = a(x)^\top (A^\top A + \alpha \mu I)^{-1} a_n\,q_n,

    where q is what the loss says of the training output: :math:`1 - p_y` of a classifier, :math:`y - f` of a
    regression; A holds the features of all training examples, and :math:`\mu` is the mean of their squared lengths. A
    positive score says that the example raises the output. Of several models that were trained alike, both factors are
    averaged, as in TRAK; more models make better scores.

    Args:
        kernels: Kernel of the trained model, or kernels of several, with the displacements to use; the energy form with
            weights that ignore the input. Their ``outputs`` are not used.
        x: Training inputs, [N, ...].
        targets: Their targets: integer labels [N] for a classifier with one logit for each class, or with one logit of
            class 1; floating targets [N] for a regression of one output.
        new: Inputs whose outputs are attributed, [N2, ...].
        new_targets: Labels [N2] for a classifier; None for a regression.
        alpha: Ridge, in means of the squared lengths of the features, above 0. TRAK has none, and fewer features than
            examples.

    Returns:
        Scores, [N2, N], float64.

    Raises:
        ValueError: If shapes do not fit, a label is no class of the model, the kernel is not of the energy form or has
            weights that depend on the input, a number is out of range, or an entry is not finite.
        TypeError: If an argument has the wrong type.

    Example:
        >>> model, x = torch.nn.Linear(3, 1, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
        >>> kernel = NonlocalNTK(model, samples=64)
        >>> scores = attribution_scores(kernel, x, model(x).detach()[:, 0] + 1, x)
        >>> scores.argmax(1)  # an example influences itself most
        tensor([0, 1, 2])
    """
    models: list[NonlocalNTK] = list(kernels) if isinstance(kernels, Sequence) else [kernels]
    if not models:
        raise ValueError("kernels must hold a kernel at least, got none.")
    alpha = checks.positive_float("alpha", alpha, 1e-30, 1e30)
    for kernel in models:
        _check_kernel(kernel)
    _check_targets("targets", targets, len(x))
    if targets.is_floating_point() != (new_targets is None):
        need = "be None for a regression" if targets.is_floating_point() else "be given for a classifier"
        raise ValueError(f"new_targets must {need}, got {'None' if new_targets is None else 'a tensor'}.")
    if new_targets is not None:
        _check_targets("new_targets", new_targets, len(new))
    known = [output_features(kernel, x, targets) for kernel in models]
    others = [output_features(kernel, new, new_targets)[0] for kernel in models]
    outputs = torch.stack([output for _, output in known])
    slopes = targets.double() - outputs if targets.is_floating_point() else torch.sigmoid(-outputs)
    return scores_of_features([features for features, _ in known], others, slopes.mean(0), alpha)


def scores_of_features(known: Sequence[Tensor], others: Sequence[Tensor], slopes: Tensor, alpha: float) -> Tensor:
    r"""Return the scores by features of any kind, for example projected gradients: TRAK's formula.

    Args:
        known: Features of the training examples by each model, [N, F].
        others: Features of the attributed outputs by each model, [N2, F].
        slopes: What the loss says of each training output, q, in the mean of the models, [N].
        alpha: Ridge, in means of the squared lengths of ``known``.

    Returns:
        Scores, [N2, N], float64.

    Raises:
        ValueError: If all features of a model are zero.
    """
    influences = [_influence(one.double(), two.double(), alpha) for one, two in zip(known, others, strict=True)]
    return torch.stack(influences).mean(0) * slopes


def output_features(kernel: NonlocalNTK, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Return the features of a model's outputs, or of its margins, and these themselves.

    The margins are evaluated at the displaced outputs, not linearised:
    :math:`a_{nm} = \sqrt{d\,\alpha_m}\,(o(f + D_m^+) - o(f + D_m^-)) / (2 |\delta_m|)` for an antithetic pair.

    Args:
        kernel: Kernel of the model, with the displacements.
        x: Inputs, [N, ...].
        labels: Integer labels, [N], for margins; for the outputs themselves, of which there must be one, None or
            floating targets.

    Returns:
        Features, [N, M], and outputs or margins, [N], both float64.

    Raises:
        ValueError: If inputs do not fit the model, a label is no class of it, or the model has several outputs and
            there are no labels.
        TypeError: If inputs have another dtype than the model.
    """
    labels = None if labels is None or labels.is_floating_point() else labels.long()
    scales = (kernel.num_params * kernel.displacement_weights() / kernel.squared_norms()).sqrt()
    logits = kernel.model_outputs(x).double()
    _check_classes(logits, labels)
    features = torch.empty(len(x), kernel.samples, dtype=torch.float64, device=x.device)
    # Both members of each pair at all outputs, their copies in float64, and what a margin is made of.
    size = max(1, kernel.settings.budget(x.device) // (64 * kernel.samples * logits.shape[1]))
    for start in range(0, len(x), size):
        block = slice(start, start + size)
        plain, classes = logits[block], None if labels is None else labels[block]
        if kernel.antithetic:
            plus, minus = kernel.differences(x[block], halves=True).double()
            difference = (_output(plain + plus, classes) - _output(plain + minus, classes)) / 2
        else:
            difference = _output(plain + kernel.differences(x[block]).double(), classes) - _output(plain, classes)
        features[block] = (difference * scales[:, None]).T
    return features, _output(logits, labels)


def linear_datamodeling_score(scores: Tensor, subsets: Tensor, outputs: Tensor) -> Tensor:
    r"""Return how well scores predict what models are that were trained on parts of the data (Park et al. 2023).

    For each attributed output it is Spearman's rank correlation, over the subsets S, between the sum of the scores of
    the examples in S and the output of a model that was trained on S alone.

    Args:
        scores: Scores of N training examples for N2 outputs, [N2, N].
        subsets: Which examples are in each of at least two subsets, [S, N], booleans.
        outputs: The outputs of the models that were trained on the subsets, [S, N2]; means over several trainings are
            better, because chance in a training lowers the score.

    Returns:
        [N2], float64, in [-1, 1]; zero where the scores or the outputs are the same for all subsets.

    Raises:
        ValueError: If shapes do not fit, there are fewer than two subsets, or an entry is not finite.
        TypeError: If an argument is no tensor, or complex, or ``subsets`` are not booleans.

    Example:
        >>> subsets = torch.tensor([[True, False], [False, True], [True, True]])
        >>> outputs = torch.tensor([[0.1], [0.2], [0.9]])
        >>> linear_datamodeling_score(torch.tensor([[1.0, 2.0]]), subsets, outputs).round(decimals=3)
        tensor([1.], dtype=torch.float64)
    """
    for name, value in (("scores", scores), ("subsets", subsets), ("outputs", outputs)):
        check_real(name, value)
        if value.dim() != 2:
            raise ValueError(f"{name} must have two axes, got {tuple(value.shape)}.")
    if subsets.dtype != torch.bool:
        raise TypeError(f"subsets must be booleans, got {subsets.dtype}.")
    if len(subsets) < 2 or subsets.shape[1] != scores.shape[1]:
        raise ValueError(f"subsets must have shape [S, {scores.shape[1]}], S > 1, got {tuple(subsets.shape)}.")
    if outputs.shape != (len(subsets), len(scores)):
        raise ValueError(f"outputs must have shape {(len(subsets), len(scores))}, got {tuple(outputs.shape)}.")
    ranks = [_centred_ranks(part) for part in (subsets.double() @ scores.double().T, outputs.double())]
    products: Tensor = (ranks[0] * ranks[1]).sum(0) / (ranks[0].norm(dim=0) * ranks[1].norm(dim=0))
    return products.nan_to_num(0.0).to(scores.device)


def _centred_ranks(columns: Tensor) -> Tensor:
    """Return the ranks of the entries of each column less their mean; equal entries share their mean rank."""
    ranks: Tensor = torch.from_numpy(np.asarray(rankdata(columns.cpu().numpy(), axis=0), dtype=np.float64))
    return ranks - ranks.mean(0)


def _influence(known: Tensor, others: Tensor, alpha: float) -> Tensor:
    """Return the products of features through the inverse of their ridge regression, [N2, N]."""
    value = alpha * float(known.square().sum(1).mean())
    if value == 0:
        raise ValueError("kernels must have displacements that change an output, got differences of zero alone.")
    if known.shape[0] <= known.shape[1]:
        return ridge.solve(known @ known.T, value, known @ others.T).T
    return others @ ridge.solve(known.T @ known, value, known.T)


def _output(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return the margins of labels, [..., N], by logits [..., N, C]; without labels, the one output."""
    if labels is None:
        return logits[..., 0]
    if logits.shape[-1] == 1:
        return logits[..., 0] * (2 * labels - 1)
    chosen = labels[:, None].expand(*logits.shape[:-1], 1)
    rest = logits.scatter(-1, chosen, -torch.inf).logsumexp(-1)
    return logits.gather(-1, chosen)[..., 0] - rest


def _check_kernel(kernel: object) -> None:
    """Check that a kernel has one feature for each displacement, the same for all inputs."""
    if not isinstance(kernel, NonlocalNTK):
        raise TypeError(f"kernels must be NonlocalNTK, got {type(kernel).__name__}.")
    if kernel.estimator != "energy" or kernel.settings.attends_to_outputs:
        raise ValueError(
            "kernels must have estimator='energy' and weights that ignore the input, "
            f"got {kernel.estimator!r} and {kernel.weights!r}."
        )


def _check_targets(name: str, targets: Tensor, number: int) -> None:
    """Check labels or targets of a number of inputs."""
    check_real(name, targets)
    if targets.shape != (number,):
        raise ValueError(f"{name} must have shape [{number}], got {tuple(targets.shape)}.")


def _check_classes(logits: Tensor, labels: Tensor | None) -> None:
    """Check that labels are classes of the outputs, or that there is one output."""
    count = logits.shape[1]
    if labels is None:
        if count != 1:
            raise ValueError(f"targets must be integer labels for a model with {count} outputs, got floating ones.")
        return
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < max(2, count)):
        raise ValueError(
            f"targets must be labels from 0 to {max(2, count) - 1}, got {int(labels.min())} to {int(labels.max())}."
        )
