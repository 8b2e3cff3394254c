"""Attribution: which training digits an output owes to, by features of networks with and without gradients."""

from dataclasses import replace

from nntk.bench.studies import Study
from nntk.bench.studies.attribution.claims import assemble_claims
from nntk.bench.studies.attribution.experiment import Size, replicate
from nntk.bench.studies.attribution.figures import draw_figures

STUDY = Study(
    name="attribution",
    title="Which training digits does an output owe to? TRAK and nonlocal features, by the datamodeling score",
    about="Scikit-learn's 8x8 digits, pixels in [0, 1]: some for training, some held out. A seed is another shuffle, "
    "other subsets, networks, projections and displacements. Networks 64-64-10 with relu, sign or 4-bit units (16 "
    "levels from -1 to 1), He's initialisation, trained by Adam on the full batch's cross-entropy; sign and 4-bit "
    "units are trained with straight-through gradients (one for inputs in [-1, 1], else zero). The output is the "
    "margin of the true class, log p - log(1 - p). Retrained are networks on random halves of the training digits, "
    "each with several initialisations, whose margins are averaged. The linear datamodeling score (LDS) of scores is "
    "Spearman's correlation, over the halves, of the sum of the scores of a half and the margin after training on it, "
    "averaged over held-out digits. Scores are those of TRAK, from networks that were trained on all training digits: "
    "features a(x)' (A'A + ridge)^-1 a_n times 1 - p_n, both factors averaged over the networks. TRAK's features are "
    "exact gradients of the margin times a normal matrix with as many columns as there are displacements. On networks "
    "with jumps these gradients are those of autograd, which sees the last layer alone, or straight-through ones; the "
    "float twin is TRAK of relu networks that were trained on the same digits, whose scores are held against the "
    "retrained networks with jumps. NNTK's features are differences of the margin over gaussian antithetic "
    "displacements of the trained network (nntk.attribution_scores). Half of the held-out digits choose the ridge of "
    "every method, and the gamma of the NNTK, by the LDS; the LDS reported is that on the other half.",
    full=Size(),
    quick=replace(
        Size(),
        seeds=3,
        digits=(120, 40),
        subsets=16,
        initialisations=1,
        models=1,
        steps=40,
        samples=128,
        gammas=(0.3,),
        ridges=(0.1, 1.0),
    ),
    replicate=replicate,
    claims=assemble_claims,
    figures=draw_figures,
)
