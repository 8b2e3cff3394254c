"""Training: figures of the rows."""

from collections.abc import Iterator

from nntk.bench.studies import StudyFigure
from nntk.bench.studies.analysis import drawing
from nntk.bench.studies.analysis.rows import Rows
from nntk.bench.studies.training.experiment import METHODS


def draw_figures(rows: Rows) -> Iterator[StudyFigure]:
    """Draw the figures of the study."""
    yield _draw_flow(rows.where(table="flow"))
    yield _draw_signs(rows.where(table="signs"))


def _draw_flow(rows: Rows) -> StudyFigure:
    figure, (losses, curves, errors) = drawing.panels(1, 3, width=3.5, height=3.6)
    wide = max(rows.distinct("width"))
    for number, name in enumerate(rows.distinct("by")):
        selected = rows.where(by=name)
        first = next(iter(selected.where(width=wide)))
        look = drawing.look(number)
        # StudyFigure wide and pale, since the other curves lie on top of it.
        below = {} if "error" in first else {"linewidth": 5, "alpha": 0.35}
        losses.plot(first["steps"], first["losses"], **{**look, "marker": "", **below}, label=name)
        if "error" in first:
            curves.plot(first["inputs"], first["wrong"], **{**look, "marker": ""})
            drawing.draw(errors, selected.band("width", "error", True), name, number)
    losses.set(xscale="log", yscale="log")
    errors.set(xscale="log", yscale="log")
    errors.set_xticks(rows.distinct("width"), [str(width) for width in rows.distinct("width")])
    errors.set_xticks((), minor=True)
    drawing.entitle(losses, f"Loss, {wide} units", "steps of gradient descent (number)", "mean squared error")
    drawing.entitle(curves, f"Error, {wide} units", "input x", "predicted minus trained function")
    drawing.entitle(errors, "Error and width", "hidden units (number)", "error (relative to the change)")
    drawing.legend(figure, 5, losses)
    return StudyFigure(
        "flow",
        "Gradient flow by a kernel against gradient descent of a tanh network. Left: the loss, and what each kernel "
        "predicts. Middle: the function at the end, predicted minus trained. Both are of the first seed. Right: that "
        "error by width, geometric means and 95 % intervals over seeds.",
        figure,
    )


def _draw_signs(rows: Rows) -> StudyFigure:
    figure, (accuracy, loss) = drawing.panels(1, 2, width=4.8, height=3.6)
    for number, method in enumerate(METHODS):
        selected = rows.where(method=method)
        drawing.draw(accuracy, selected.band("evaluations", "accuracy"), method, number)
        drawing.draw(loss, selected.band("evaluations", "loss", True), method, number)
    accuracy.set(xscale="log", ylim=(0, 1))
    loss.set(xscale="log", yscale="log")
    drawing.entitle(accuracy, "Held out", "evaluations of the network (number)", "accuracy (fraction of digits)")
    drawing.entitle(loss, "Training", "evaluations of the network (number)", "cross-entropy (nats)")
    drawing.legend(figure, 4, accuracy)
    return StudyFigure(
        "signs",
        "A sign network trained on 1000 digits by four methods, along evaluations of a batch (a forward and a backward "
        "pass count three): accuracy on the 797 held out, and the loss on those of training. Means (of the loss "
        "geometric) and 95 % intervals over seeds.",
        figure,
    )
