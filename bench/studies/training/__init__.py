"""Training: gradient flow by the kernel against training, and a sign network trained by four methods."""

from dataclasses import replace

from nntk.bench.studies import Study
from nntk.bench.studies.training.claims import assemble_claims
from nntk.bench.studies.training.experiment import Size, replicate
from nntk.bench.studies.training.figures import draw_figures

STUDY = Study(
    name="training",
    title="Training predicted by the kernel, and training without gradients",
    about="Flow: a tanh network of one input and one hidden layer (He's initialisation, normal biases of standard "
    "deviation 0.5) is trained by gradient descent on half the sum of squares at points evenly spaced in [-1, 1], "
    "target sin(4 x) + |x| / 2, at a tenth of the largest stable learning rate of the NTK. nntk.GradientFlow predicts "
    "it from the kernel at initialisation: the exact NTK, or the energy form of gaussian antithetic displacements. "
    "The error is that of the final function on a grid, relative to its change, in the 2-norm. Signs: scikit-learn's "
    "8x8 digits, 1000 for training, 797 held out; a sign network 64-32-32-10 (He's initialisation, biases zero), "
    "cross-entropy, the same initial weights and the same batches for every method. Nonlocal descent is "
    "nntk.NonlocalGradientDescent. Evolution strategies (Salimans et al. 2017) take as many antithetic pairs of the "
    "same law, centred ranks and Adam. Straight-through (Bengio et al. 2013) has the gradient of hardtanh in place of "
    "sign's, and Adam; autograd has sign's own, zero, and Adam. An antithetic pair counts as two evaluations of the "
    "network at a batch, a forward and a backward pass as three. Those with gradients end earlier, after their "
    "accuracy has settled. The settings of both methods of displacements are the best, for both, of ten combinations "
    "of learning rates from 0.005 to 0.04 and gammas from 0.05 to 0.4, tried on seeds 100 and 101; the learning rate "
    "of those with gradients is the best of 0.001, 0.003, 0.01 and 0.03 for straight-through on the same seeds. A seed "
    "sets the split of the digits too. All in float64.",
    full=Size(),
    quick=replace(
        Size(),
        seeds=3,
        widths=(16, 256),
        gammas=(0.01, 1.0),
        flow_samples=256,
        flow_steps=300,
        steps=80,
        gradient_steps=200,
    ),
    replicate=replicate,
    claims=assemble_claims,
    figures=draw_figures,
)
