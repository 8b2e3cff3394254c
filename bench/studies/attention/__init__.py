"""Attention over displacements: its weights, their effect on bias and scatter, and when they collapse."""

from dataclasses import replace

from nntk.bench.studies import Study
from nntk.bench.studies.attention.claims import assemble_claims
from nntk.bench.studies.attention.experiment import Size, replicate
from nntk.bench.studies.attention.figures import draw_figures

STUDY = Study(
    name="attention",
    title="What attention over displacements does",
    about="Untrained networks 8-h-h-1 with tanh, relu or sign units (He's initialisation, normal biases of standard "
    "deviation 0.5), h = 32 where nothing else is said; a seed is another network, other inputs and other "
    "displacements. Energy form, gaussian antithetic displacements, float64. Weights, bias and scatter are of "
    "a tanh network at standard-normal inputs, of gamma = 0.03: there differences are nearly linear, and the share "
    "of effective samples, 1 / sum(alpha^2) over M, should be 1 / cosh(a) for dot scores and "
    "sqrt(1 + 2 b) / (1 + b) for distances on outputs, to the power of 16 on parameters, with a the "
    "variance of the scores over the squared temperature and b the variance of a difference (of a projected "
    "displacement) over the temperature; the diagonal becomes 1 + a and 1 / (1 + b) times as large. Kernels of several "
    "sets of displacements are compared with the mean of those with equal weights at the same displacements; scatter "
    "is their standard deviation over the norm of their mean. Networks of other widths have one temperature for each "
    "score. Regression is of scikit-learn's Friedman function of 8 inputs with noise 0.5, on the "
    "features, with the ridge by leave-one-out, from 1e-14 to 100 of the mean squared length of the features; gamma is "
    "0.1, but 0.3 and 1 too for relu networks with gaussian displacements of equal weights.",
    full=Size(),
    quick=replace(
        Size(), seeds=3, samples=128, inputs=8, repeats=4, widths=(8, 128), held_out=128, temperatures=(10.0, 1.0)
    ),
    replicate=replicate,
    claims=assemble_claims,
    figures=draw_figures,
)
