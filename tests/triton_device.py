"""Where the tests of the kernels run: on the GPU, else in Triton's interpreter on the CPU."""

import torch

from nntk.kernels.perturb import launch
from nntk.kernels.perturb.activations import encode
from nntk.models import recognise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 5


def kernel_differences(model, x, rows, scales, directions, pairs="odd", precision="fp32", path=None, max_bytes=2**27):
    """Unit differences and squared norms by the Triton kernels, on whatever they can run here."""
    mlp = recognise(model.to(DEVICE))
    return launch.mlp_differences(
        x.to(DEVICE),
        [layer.weight for layer in mlp.layers],
        [layer.bias for layer in mlp.layers],
        *encode([layer.activation for layer in mlp.layers]),
        [-1 if layer.weight_ordinal is None else layer.weight_ordinal for layer in mlp.layers],
        [-1 if layer.bias_ordinal is None else layer.bias_ordinal for layer in mlp.layers],
        rows.to(DEVICE),
        scales.to(DEVICE),
        SEED,
        0,
        directions,
        pairs,
        "difference",
        precision,
        max_bytes,
        path,
    )
