"""Picture of a comparison of two kernels: their spectra, and the angles between their eigenvectors."""

import math

from nntk import KernelComparison
from nntk.bench.report.plots.axes import look_of, new_figure, set_logarithmic, set_titles
from nntk.bench.report.plots.chart import Chart


def kernel_comparison(comparison: KernelComparison, names: tuple[str, str]) -> Chart:
    """Draw the largest eigenvalues of two kernels and their principal angles, with error bars of two standard errors.

    Args:
        comparison: Comparison of the kernels.
        names: Names of the kernels.

    Returns:
        The chart.
    """
    figure, (spectra, angles) = new_figure(panels=2)
    places = list(range(1, len(comparison.angles.value) + 1))
    for number, (name, statistic) in enumerate(zip(names, comparison.eigenvalues, strict=True)):
        shown = [place for place in places if float(statistic.value[place - 1]) > 0]
        values, errors = (
            [float(part[place - 1]) for place in shown] for part in (statistic.value, statistic.standard_error)
        )
        # A bar that reaches zero has no end on a logarithmic axis.
        below = [min(2 * error, 0.99 * value) for value, error in zip(values, errors, strict=True)]
        bars = [below, [2 * error for error in errors]]
        rank = comparison.effective_rank[number]
        spectra.errorbar(shown, values, bars, **look_of(number), capsize=3, label=f"{name}, effective rank {rank}")
    set_logarithmic(spectra, "y")
    title = f"Alignment {comparison.alignment}, centred {comparison.centred_alignment}"
    set_titles(spectra, title, "number of the eigenvalue", "eigenvalue (units of the kernel)", width=44)
    spectra.legend(loc="upper right", fontsize=8)
    degrees = [
        [math.degrees(value) for value in part.tolist()]
        for part in (comparison.angles.value, comparison.angles.standard_error)
    ]
    angles.errorbar(places, degrees[0], [2 * error for error in degrees[1]], **look_of(2), capsize=3)
    angles.set_ylim(-3, 93)
    set_titles(angles, "Leading eigenvectors", "number of the principal angle", "angle (degrees)")
    for panel in (spectra, angles):
        panel.set_xticks(places if len(places) <= 10 else places[:: len(places) // 5])
    return Chart(
        "comparison", f"Comparison of {names[0]} and {names[1]}",
        "Left: largest eigenvalues. Right: principal angles between the spaces of as many leading eigenvectors; 0 "
        "degrees is a direction that both spaces have. Bars are two standard errors of the displacements.",
        figure,
    )  # fmt: skip
