"""Line charts as SVG, made to be read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#7a7f87"
"""Text and axes: as far from white as from black."""

COLOURS = ("#2f81f7", "#e36209", "#2da44e", "#a371f7")
"""Of the lines, in their order; each stands out from white and from black."""

WIDTH, HEIGHT = 8.0, 3.4
"""Of a panel, in inches at 72 points."""


@dataclass(frozen=True)
class Line:
    """Points in order, joined, or `points` by themselves."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    points: bool = False


@dataclass(frozen=True)
class Panel:
    """A diagram. `level`: a limit, by its name and value on the y axis; `mark`: a place on the x axis."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    level: tuple[str, float] | None = None
    mark: tuple[str, float] | None = None
    log: bool = False
    """Whether the y axis is logarithmic."""


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write panels one below the other into an SVG. The same panels give the same bytes. Raises OSError."""
    # Late: it takes half a second, and most commands draw nothing.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "asr-load", "font.family": "sans-serif", "font.size": 11}):
        figure = Figure(figsize=(WIDTH, HEIGHT * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for panel, axis in zip(panels, axes, strict=True):
            _panel(panel, axis)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _panel(panel: Panel, axis: Axes) -> None:
    axis.set_title(panel.title, loc="left", color=INK)
    axis.set_xlabel(panel.x, color=INK)
    axis.set_ylabel(panel.y, color=INK)
    axis.tick_params(colors=INK, which="both")
    axis.grid(visible=True, color=INK, alpha=0.25)
    axis.patch.set_alpha(0)
    for side, spine in axis.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    for line, colour in zip(panel.lines, COLOURS, strict=False):
        style = "" if line.points else "-"
        axis.plot(line.x, line.y, linestyle=style, color=colour, marker="o", markersize=4, label=line.name)
    if panel.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    else:
        axis.set_ylim(bottom=0)
    if panel.level is not None:
        name, value = panel.level
        axis.axhline(value, color=COLOURS[3], linestyle=":", label=name)
    if panel.mark is not None:
        name, value = panel.mark
        axis.axvline(value, color=INK, linestyle=":", label=name)
    axis.legend(frameon=False, labelcolor=INK, fontsize=10)
