"""Chart: a figure of matplotlib with the texts that stand beside it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """Chart of a section before it is written as SVG.

    Attributes:
        kind: Kind of the chart, which becomes part of the name of its file.
        title: Title.
        caption: Sentences that say how to read it.
        figure: Figure.
    """

    kind: str
    title: str
    caption: str
    figure: "Figure"
