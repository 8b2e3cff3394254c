"""Dimension: importance weights, estimators and families of displacements, from 9 to a million parameters."""

from dataclasses import replace

from nntk.bench.studies import Study
from nntk.bench.studies.dimension.claims import assemble_claims
from nntk.bench.studies.dimension.experiment import Size, replicate
from nntk.bench.studies.dimension.figures import draw_figures

STUDY = Study(
    name="dimension",
    title="What many parameters do to weights, estimators and families of displacements",
    about="An untrained tanh network 4-w-w-1 (He's initialisation, normal biases of standard deviation 0.5), which has "
    "w^2 + 7 w + 1 parameters, at standard-normal inputs, gamma = 1e-4, antithetic displacements. Errors are relative, "
    "in Frobenius norm, against the exact NTK; where d allows, a seed's squared error is a mean over several sets of "
    "displacements (200,000 / d of them, 1 to 8). Predicted is the error for a linear model: of energy by "
    "nntk.monte_carlo_error; of unbiased sqrt(4 + d / M) times that, by the variance of a U-statistic; of plugin from "
    "both and the bias (d - 1) / M. Plugin is made of energy and unbiased, of which it is a sum: (1 - 1 / M) unbiased "
    "+ d / M energy. Weights: displacements of random signs with lengths of a proposal, weighted as those of a "
    "gaussian; effective samples are 1 / sum alpha^2. Ten outputs: the trace of the kernel, at w = 97. The exact NTK "
    "is nntk.local_ntk, structured. Times are of one call, with the displacements' noise.",
    full=Size(),
    quick=replace(Size(), seeds=4, hidden=(7, 28, 97), repeats=2),
    replicate=replicate,
    claims=assemble_claims,
    figures=draw_figures,
)
