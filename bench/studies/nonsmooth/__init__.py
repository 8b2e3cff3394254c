"""Networks that jump: spikes, signs and hard choices, by the NTK, surrogate gradients and the NNTK."""

from dataclasses import replace

from nntk.bench.studies import Study
from nntk.bench.studies.nonsmooth.claims import assemble_claims
from nntk.bench.studies.nonsmooth.experiment import Size, replicate
from nntk.bench.studies.nonsmooth.figures import draw_figures

STUDY = Study(
    name="nonsmooth",
    title="Spikes, signs and hard choices: NTK, surrogate gradients and NNTK of three networks that jump",
    about="Scikit-learn's 8x8 digits, pixels in [0, 1]: some for training, some held out (first and second number). A "
    "seed is another shuffle of the same data, another network and other displacements: intervals do not cover other "
    "data. Three untrained networks of nntk.bench.networks with ten outputs, PyTorch's initialisation, float64. The "
    "spiking network has two layers of 64 leaky integrate-and-fire units over 25 steps, driven by a constant current, "
    "decay 0.9, threshold 1, reset by subtraction; a linear head reads the mean number of spikes. The binary CNN has "
    "two convolutions of 16 and 32 channels with binary weights (signs, times the mean of the absolute values), each "
    "followed by a maximum over 2 x 2 and a sign; the head is real. The mixture of experts has four experts "
    "64-32-10 with relu units; a linear router sends each input to one of them, by the largest score. Kernels, each "
    "traced over the outputs: the NTK with the gradients of autograd, which are zero through steps, signs and the "
    "choice of an expert; the NTK of a network with the same outputs whose backward pass has surrogate gradients; the "
    "NNTK (energy form, gaussian antithetic displacements of all parameters, gamma chosen at few displacements). The "
    "surrogates, of width w: of a spike the derivative of a fast sigmoid, 1 / (1 + |v| / w)^2 at the distance v from "
    "the threshold (Zenke and Ganguli 2018); of a sign, one for absolute values up to w, else zero (straight-through, "
    "clipped); of a choice the derivative of a softmax at temperature w. Ridge regression with an intercept "
    "of one-hot targets; the ridge, one for all targets, is the largest whose exact leave-one-out error is within a "
    "thousandth of the least, of 45 from 1e-8 to 1e3 in means of the training kernel's diagonal. The same error, on "
    "training digits alone, chooses gamma, the width of the surrogate, and the length scale of an RBF kernel, which is "
    "in medians of the distance between training inputs. The largest output is the class. Seconds are those of the "
    "kernel matrix of all inputs.",
    full=Size(),
    quick=replace(
        Size(),
        seeds=3,
        digits=(80, 60),
        samples=(16, 64),
        gammas=(0.3, 1.0),
        gamma_samples=32,
        spike_widths=(0.3, 1.0),
        sign_widths=(0.3, 3.0),
        temperatures=(0.3, 1.0),
        length_scales=(0.5, 1.0, 2.0),
    ),
    replicate=replicate,
    claims=assemble_claims,
    figures=draw_figures,
)
