"""The nonlocal neural tangent kernel: finite, randomly displaced parameter differences instead of gradients."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nntk.kernels import checks
from nntk.kernels.assemble import ESTIMATORS, NORMALIZATIONS, OUTPUTS, assemble, displacement_gram
from nntk.kernels.fixed_weights import squared_norms
from nntk.kernels.perturb import DEFAULT_BYTES, PRECISIONS, PROPAGATION, check_precision, mlp_differences
from nntk.kernels.philox import parse, split_seed, unit_displacements
from nntk.models import Mlp, recognise

_GAMMA_HINT = "gamma is the length scale of the displacements, e.g. 0.1; the kernel tends to the NTK as it falls."
_SAMPLES_HINT = "Each sample is one displacement theta + delta_m; a thousand give about 5 % error."


class NonlocalNTK:
    r"""Nonlocal neural tangent kernel of a model, estimated from random displacements of its parameters.

    The gradient in the NTK is replaced by the nonlocal one of Nagaraj & Hari (arXiv 2509.12467),

    .. math::
        G_\gamma f(x) = \int \frac{f(x; \theta + \delta) - f(x; \theta)}{|\delta|^2}\,
        \delta\,\rho_\gamma(\delta)\,d\delta, \qquad \rho_\gamma(\delta) \propto e^{-|\delta|^2 / \gamma^2},

    so that models without a useful gradient have a kernel too. From M displacements, of standard deviation
    :math:`\gamma / \sqrt 2` per coordinate, and the differences :math:`D_m(x)`, the default ``"energy"`` estimator is

    .. math::
        K(x, x') = \frac{d}{M} \sum_m \frac{D_m(x) D_m(x')}{|\delta_m|^2} \to \Theta(x, x') \quad (\gamma \to 0),

    the NTK, for smooth models; its error falls as :math:`1 / \sqrt M`, and relative to a kernel of one output is
    :math:`\sqrt{2 / M}` or more (:func:`nntk.monte_carlo_error` predicts it). The estimators are this project's
    definitions; README.md of ``kernels/assemble`` states them. The same seed gives the same displacements on every
    device, in every dtype and for every batch.

    Args:
        model: An ``nn.Sequential`` of Linear layers and known activations (see :func:`nntk.models.recognise`); its
            parameters that require a gradient are displaced, and none is ever modified. Training it between calls is
            fine: each call sees its present parameters.
        gamma: Length scale of the displacements, in parameter units, in [1e-30, 1e30].
        samples: Number M of displacements; an antithetic one costs two evaluations.
        directions: ``"gaussian"``; ``"rademacher"``, random signs of the same standard deviation; ``"flipout(B)"``,
            signs that share B bases; ``"lowrank(R)"``, products of two factors of rank R, the cheapest to evaluate and
            make, at a larger Monte-Carlo error (README.md has the figures).
        antithetic: Take the odd part :math:`[f(\theta + \delta) - f(\theta - \delta)] / 2` as difference: closer to
            :math:`\langle G f, G f \rangle`, and free of the second-order term.
        estimator: ``"energy"``, ``"plugin"`` or ``"unbiased"``.
        normalization: ``"gradient"``, with the NTK as limit, or ``"paper"``, smaller by d squared.
        outputs: What to make of C outputs: ``"trace"`` or ``"mean"`` over them, ``"diagonal"`` or ``"full"``.
        propagation: ``"difference"``, ``"direct"`` or ``"auto"``; see :func:`nntk.kernels.perturb.mlp_differences`.
        precision: Of the operands of float32 products: ``"fp32"``, ``"tf32"``, ``"bf16"``, or ``"auto"`` for the
            cheapest whose error is below a tenth of the Monte-Carlo error; a CPU emulates the lower two, only if asked.
        seed: Seed of the displacements, in [0, 2**64).
        max_memory: Bytes of temporary memory, at least 2**20; None for 128 MiB, on a GPU 256 MiB. On top come the
            results, a float64 copy of one weight at a time, and for plugin and unbiased the differences, M N C numbers,
            with the M^2 products of displacements and M slices of four rows of a weight.

    Raises:
        ValueError: If a number is out of range, a name unknown, or a parameter not finite.
        TypeError: If the model is not recognised (the message names the layer) or an argument has the wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> kernel = NonlocalNTK(model, gamma=1e-3, samples=256)
        >>> x = torch.randn(5, 3)
        >>> k = kernel(x)
        >>> k.shape, torch.equal(k, k.T), torch.equal(k, kernel(x))
        (torch.Size([5, 5]), True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        gamma: float = 0.1,
        samples: int = 1024,
        directions: str = "gaussian",
        antithetic: bool = True,
        estimator: str = "energy",
        normalization: str = "gradient",
        outputs: str = "trace",
        propagation: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        max_memory: int | None = None,
    ) -> None:
        self.gamma = checks.positive_float("gamma", gamma, 1e-30, 1e30, _GAMMA_HINT)
        self.samples = checks.integer("samples", samples, 1, 2**32, _SAMPLES_HINT)
        self.directions = str(parse(directions))
        self.antithetic = checks.boolean("antithetic", antithetic)
        self.estimator = checks.choice("estimator", estimator, ESTIMATORS)
        self.normalization = checks.choice("normalization", normalization, NORMALIZATIONS)
        self.outputs = checks.choice("outputs", outputs, OUTPUTS)
        self.propagation = checks.choice("propagation", propagation, PROPAGATION)
        self.precision = checks.choice("precision", precision, PRECISIONS)
        split_seed(seed)
        self.seed = seed
        self.max_memory = None if max_memory is None else checks.integer("max_memory", max_memory, 2**20)
        if estimator == "unbiased" and samples < 2:
            raise ValueError(f"samples must be at least 2 for the unbiased estimator, got {samples}.")
        self.model = model
        check_precision(precision, propagation, recognise(model).dtype)

    def __repr__(self) -> str:
        settings = {name: value for name, value in vars(self).items() if name != "model"}
        return f"NonlocalNTK({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    @torch.no_grad()
    def __call__(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """The kernel between inputs.

        Args:
            x1: The rows' inputs, [N1, K] (or [N1, ...] where the model flattens), in the model's dtype.
            x2: The columns' inputs, [N2, K]; None for the symmetric kernel of ``x1``.

        Returns:
            [N1, N2] in the model's dtype, with axes [C] or [C, C] appended for ``outputs="diagonal"`` and ``"full"``.
            Exactly symmetric without ``x2``; positive semi-definite for energy and plugin.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, or the model's outputs are not finite.
            TypeError: If inputs have another dtype than the model.
        """
        mlp = recognise(self.model)
        first = mlp.inputs("x1", x1)
        second = None if x2 is None else mlp.inputs("x2", x2)
        # The columns' inputs ride along: one pass, one generation of the noise.
        joint = first if second is None else torch.cat((first, second))
        kernel: Tensor | None = None
        for rows in self._pieces(mlp, len(joint)):
            unit, norms = self._unit_differences(mlp, joint, rows, "odd" if self.antithetic else "none")
            weights = torch.full((len(rows),), 1 / self.samples, dtype=torch.float64, device=mlp.device)
            part = assemble(
                unit[:, : len(first)],
                weights,
                norms,
                mlp.num_params,
                d2=None if second is None else unit[:, len(first) :],
                estimator=self.estimator,
                gram=None if self.estimator == "energy" else self._gram(mlp, rows),
                normalization=self.normalization,
                outputs=self.outputs,
            )
            kernel = part if kernel is None else kernel.add_(part)
        assert kernel is not None, "there is at least one sample"
        checks.finite("the kernel, from the model's outputs at displaced parameters,", kernel)
        return kernel

    @torch.no_grad()
    def differences(self, x: Tensor, halves: bool = False) -> Tensor:
        r"""Differences :math:`D_m(x) = f(x; \theta + \delta_m) - f(x; \theta)`, or their odd parts if antithetic.

        Args:
            x: Inputs, [N, K], in the model's dtype.
            halves: Return both one-sided differences of each antithetic pair instead of the odd part.

        Returns:
            [M, N, C] in the model's dtype; with ``halves``, [2, M, N, C], that of :math:`-\delta_m` second.

        Raises:
            ValueError: If inputs do not fit the model or are not finite, or ``halves`` is asked of a kernel that is
                not antithetic.
            TypeError: If inputs have another dtype than the model.
        """
        if checks.boolean("halves", halves) and not self.antithetic:
            raise ValueError("halves must be False for a kernel with antithetic=False, got True.")
        mlp = recognise(self.model)
        rows = torch.arange(self.samples, device=mlp.device)
        pairs = "none" if not self.antithetic else "both" if halves else "odd"
        unit, _ = self._unit_differences(mlp, mlp.inputs("x", x), rows, pairs)
        differences = unit.mul_(self._scale(mlp))
        checks.finite("the differences of the model's outputs", differences)
        return differences

    def displacements(self, m: int) -> dict[str, Tensor]:
        r"""The displacement :math:`\delta_m` itself, for inspection.

        Args:
            m: Which one, in [0, samples).

        Returns:
            One tensor for each displaced parameter, by its name in the model: add it to the parameter to get
            :math:`\theta + \delta_m`.

        Raises:
            ValueError: If ``m`` is out of range.
            TypeError: If ``m`` is no integer.
        """
        checks.integer("m", m, 0, self.samples - 1)
        mlp = recognise(self.model)
        row = torch.tensor([m], device=mlp.device)
        return {
            mlp.names[ordinal]: self._scale(mlp)
            * unit_displacements(row, ordinal, parameter.shape, self.seed, self.directions, mlp.dtype)[0]
            for ordinal, parameter in mlp.displaced.items()
        }

    def squared_norms(self) -> Tensor:
        r"""Squared norms :math:`|\delta_m|^2` of the displacements, [M], float64, in squared parameter units."""
        mlp = recognise(self.model)
        rows = torch.arange(self.samples, device=mlp.device)
        return squared_norms(mlp.displaced, rows, self.seed, self.directions) * self._scale(mlp) ** 2

    @property
    def num_params(self) -> int:
        """Number d of displaced parameters."""
        return recognise(self.model).num_params

    @property
    def evaluations(self) -> int:
        """Displaced evaluations of the model for each input: an antithetic sample counts two."""
        return self.samples * (2 if self.antithetic else 1)

    def _scale(self, mlp: Mlp) -> float:
        """Standard deviation of a displacement per coordinate, as the model's dtype holds it."""
        return float(torch.tensor(self.gamma / math.sqrt(2), dtype=mlp.dtype, device="cpu"))

    def _unit_differences(self, mlp: Mlp, x: Tensor, rows: Tensor, pairs: str) -> tuple[Tensor, Tensor]:
        return mlp_differences(
            x,
            mlp.layers,
            rows,
            torch.full(rows.shape, self._scale(mlp), dtype=mlp.dtype, device=mlp.device),
            self.seed,
            self.directions,
            pairs,
            self.propagation,
            self.precision,
            self.max_memory,
            self.samples,
        )

    def _gram(self, mlp: Mlp, rows: Tensor) -> Tensor:
        return displacement_gram(mlp.displaced, rows, self.seed, self.directions)

    def _pieces(self, mlp: Mlp, num_inputs: int) -> Sequence[Tensor]:
        """Rows to assemble together: all where every pair of displacements counts, else as the budget allows."""
        rows = torch.arange(self.samples, device=mlp.device)
        if self.estimator != "energy":
            return [rows]
        # Four copies: the differences, and the features that assembly makes of them.
        row_bytes = 4 * max(1, num_inputs) * mlp.num_outputs * mlp.dtype.itemsize
        return torch.split(rows, max(64, (self.max_memory or DEFAULT_BYTES) // row_bytes))
