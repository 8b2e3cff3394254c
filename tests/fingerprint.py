"""Print a hash of what the library computes, to show that a refactoring changes no bits.

Run ``python tests/fingerprint.py`` before and after, on the same machine: the last line is the hash of everything, and
the lines before it say which setting differs. The script uses public names alone, so that it runs at both commits.
"""

import hashlib
import warnings

import numpy as np
import torch
from torch import Tensor, nn

import nntk


class Residual(nn.Module):
    """A convolutional network with a skip connection, batch norm in evaluation mode, and sign units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.sign, self.last = nn.BatchNorm2d(4), nntk.activations.Sign(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N, 2] of images [N, 1, 6, 6]."""
        h = torch.relu(self.norm(self.first(x)))
        return self.last((h + self.sign(self.second(h))).mean((2, 3)))


def mlp(activation: nn.Module, outputs: int = 1, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An MLP of widths 6, 12, 10 and the number of outputs."""
    return nn.Sequential(
        nn.Linear(6, 12), activation, nn.Linear(12, 10), activation, nn.Linear(10, outputs)
    ).to(dtype)  # fmt: skip


def transformer() -> nn.Module:
    """A transformer layer on token embeddings; only the head is displaced in the settings below."""
    encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)
    return nn.Sequential(nn.Embedding(20, 8), encoder, nn.Flatten(), nn.Linear(40, 3)).eval()


def settings() -> dict[str, tuple[object, dict[str, object], Tensor]]:
    """Models, arguments of the kernel and inputs: families, estimators, weights and kinds of model."""
    activations, fixed, attention = nntk.activations, nntk.FixedKernel, nntk.Attention
    x, images, tokens = torch.randn(7, 6), torch.randn(5, 1, 6, 6), torch.randint(0, 20, (5, 5))
    box = nntk.BlackBox(lambda theta, x: np.sign(np.sin(x @ theta[:6]) - theta[6]), np.full(7, 0.1))
    weight = {"w": torch.randn(3, 6)}
    dropping = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)).train()
    return {
        "relu gaussian energy": (mlp(nn.ReLU()), {}, x),
        "tanh gaussian plugin": (mlp(nn.Tanh(), 2), {"estimator": "plugin", "outputs": "full"}, x),
        "gelu gaussian unbiased": (mlp(nn.GELU(), 2), {"estimator": "unbiased", "outputs": "diagonal"}, x),
        "sign rademacher energy": (mlp(activations.Sign()), {"directions": "rademacher", "gamma": 1e-6}, x),
        "step rademacher unbiased": (mlp(activations.Step()), {"directions": "rademacher", "estimator": "unbiased"}, x),
        "quantise flipout energy": (mlp(activations.Quantise(4)), {"directions": "flipout(3)"}, x),
        "sawtooth flipout plugin": (
            mlp(activations.Sawtooth(), 2),
            {"directions": "flipout(3)", "estimator": "plugin", "outputs": "mean"},
            x,
        ),
        "silu lowrank energy": (mlp(nn.SiLU()), {"directions": "lowrank(2)"}, x),
        "softplus lowrank unbiased": (mlp(nn.Softplus()), {"directions": "lowrank(1)", "estimator": "unbiased"}, x),
        "sin one-sided direct": (mlp(activations.Sin()), {"antithetic": False, "propagation": "direct"}, x),
        "relu bf16": (mlp(nn.ReLU()), {"precision": "bf16", "propagation": "difference"}, x),
        "sigmoid tf32 lowrank": (mlp(nn.Sigmoid()), {"precision": "tf32", "directions": "lowrank(2)"}, x),
        "leaky relu float64 paper": (
            mlp(nn.LeakyReLU(0.1), 2, torch.float64),
            {"normalization": "paper", "outputs": "full"},
            x.double(),
        ),
        "relu exponential": (mlp(nn.ReLU()), {"weights": fixed("exponential")}, x),
        "relu cauchy from ball": (mlp(nn.ReLU()), {"weights": fixed("ball", proposal=fixed("cauchy"))}, x),
        "tanh power plugin": (
            mlp(nn.Tanh()),
            {"weights": fixed("power", order=1.0, cutoff=0.01), "estimator": "plugin"},
            x,
        ),
        "relu attention dot": (mlp(nn.ReLU(), 2), {"weights": attention(temperature=0.1)}, x),
        "sign attention distance unbiased": (
            mlp(activations.Sign()),
            {"weights": attention(score="distance"), "estimator": "unbiased"},
            x,
        ),
        "relu attention on parameters": (mlp(nn.ReLU()), {"weights": attention(on="parameters")}, x),
        "relu attention by a callable": (
            mlp(nn.ReLU()),
            {"weights": attention(score=lambda x, m: torch.outer(torch.tensor(list(m)).sin(), x[:, 0]))},
            x,
        ),
        "residual network": (Residual().eval(), {}, images),
        "residual network flipout": (Residual().eval(), {"directions": "flipout(2)", "antithetic": False}, images),
        "residual network in chunks": (Residual().eval(), {"samples": 300, "max_memory": 2**20}, images),
        "relu in chunks": (mlp(nn.ReLU(), 4), {"samples": 300, "max_memory": 2**20}, x.repeat(40, 1)),
        "transformer head": (transformer(), {"parameters": ["3.*"]}, tokens),
        "transformer": (transformer(), {"directions": "lowrank(1)"}, tokens),
        "sorting module": (nn.Sequential(nn.Linear(6, 5), Sorting(), nn.Linear(5, 1)), {}, x),
        "function": (lambda p, x: torch.tanh(x @ p["w"].T), {"parameters": weight, "estimator": "plugin"}, x),
        "black box": (box, {}, x.double()),
        "dropout by draws": (dropping, {"draws": 3}, x),
    }


class Sorting(nn.Module):
    """A function without a rule of difference propagation: the model is evaluated at displaced copies."""

    def forward(self, x: Tensor) -> Tensor:
        """Sort the last axis."""
        return x.sort(-1).values


def results(model: object, arguments: dict[str, object], x: Tensor) -> dict[str, Tensor]:
    """Return all that one kernel computes, by name."""
    kernel = nntk.NonlocalNTK(model, seed=3, **({"samples": 48} | arguments))
    estimate = kernel.estimate(x, rtol=0.3, max_samples=2 * kernel.samples)
    out = {
        "D": kernel.differences(x),
        "K": kernel(x),
        "K cross": kernel(x[:2], x[2:]),
        "diagonal": kernel.diagonal(x),
        "gradients": kernel.jacobian(x),
        "squared norms": kernel.squared_norms(),
        "estimate": estimate.kernel,
        "standard error": estimate.standard_error,
        "error": torch.tensor([estimate.relative_error, estimate.effective_samples, estimate.samples]),
        "weights": kernel.displacement_weights(x if by_input(kernel) else None),
    }
    out |= {f"displacement {name}": tensor for name, tensor in kernel.displacements(5).items()}
    if kernel.antithetic:
        out["members"] = kernel.differences(x, halves=True)
    if kernel.outputs in ("trace", "mean") and kernel.estimator != "unbiased":
        operator = kernel.operator(x)
        out |= {"features": kernel.features(x), "product": operator @ x.new_ones(len(x), dtype=torch.float64)}
        out |= {"solution": operator.solve(torch.ones(len(x)), 0.1), "eigenvalues": operator.eigvalsh(2)}
        flow = nntk.GradientFlow(kernel(x), torch.ones(len(x)))
        out["gradient flow"] = flow.at(0.5, cross=kernel(x[:2], x))
    return out


def by_input(kernel: nntk.NonlocalNTK) -> bool:
    """Return whether weights depend on the input."""
    return isinstance(kernel.weights, nntk.Attention) and kernel.weights.on == "outputs"


def others() -> dict[str, Tensor]:
    """Return predictions of the estimators, and the local NTK by each method."""
    model, x = mlp(nn.Tanh(), 2), torch.randn(9, 6)
    out = {
        f"local {method}": nntk.local_ntk(model, x, method=method, outputs="full")
        for method in ("structured", "jacobian", "vector-products")
    }
    out["predicted error"] = torch.tensor(nntk.monte_carlo_error(out["local structured"], 64, 100, "trace"))
    inputs = x.numpy()
    for samples in (4, 64):
        ridge = nntk.KernelRidge(samples=samples).fit(inputs, inputs[:, :2])
        out[f"ridge {samples}"] = torch.as_tensor(ridge.predict(inputs[:4]))
        out[f"alpha {samples}"] = torch.tensor(ridge.alpha_)
    classifier = nntk.KernelRidgeClassifier(samples=32).fit(inputs, inputs[:, 0] > 0)
    out["classifier"] = torch.as_tensor(classifier.decision_function(inputs))
    return out


def hash_of(tensors: dict[str, Tensor]) -> str:
    """Return a hash of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Print a line for each setting, and the hash of all."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    total = hashlib.sha256()
    for name, setting in settings().items():
        line = f"{hash_of(results(*setting))[:16]}  {name}"
        print(line, flush=True)
        total.update(line.encode())
    line = f"{hash_of(others())[:16]}  local NTK, ridge, predicted error"
    print(line)
    total.update(line.encode())
    print(total.hexdigest())


if __name__ == "__main__":
    main()
