"""Chart of the CPU of a request and of the requests per second, one bar for each server."""

import json
import math
import statistics
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import patches, pyplot

COLORS = {"iris_wsgi": "#1b6e53", "others with log and metrics": "#8cc0ae", "without log and metrics": "#b9c2c9"}
INK = "#22282d"
# Longer bars of CPU are cut, because they would make the others too short to compare.
CUT_AT_MEDIANS = 3


def main(path: str, bars: list[dict[str, Any]]) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.32 * len(bars) + 1.2), sharey=True, layout="constrained")
    limit = CUT_AT_MEDIANS * statistics.median(bar["cpu"] or 0 for bar in bars)
    draw(axes[0], bars, "cpu", "CPU µs of a request (less is better)", limit)
    draw(axes[1], bars, "rate", "requests/s at 16 connections (more is better)")
    axes[0].set_yticks(range(len(bars)), [bar["title"] for bar in bars])
    axes[0].set_ylim(len(bars) - 0.5, -0.5)
    handles = [patches.Patch(color=color, label=group) for group, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def draw(axis: Any, bars: list[dict[str, Any]], figure: str, heading: str, limit: float = math.inf) -> None:
    """Draws a panel with a bar and a figure for each server."""
    values = [bar[figure] or 0 for bar in bars]
    axis.barh(
        range(len(bars)), [min(value, limit) for value in values], color=[COLORS[bar["group"]] for bar in bars], height=0.68
    )
    for i, value in enumerate(values):
        text = f"{value:,.0f}" + " (cut)" * (value > limit)
        axis.annotate(text, (min(value, limit), i), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=9)
    axis.set_title(heading, fontsize=10, color=INK, loc="left")
    axis.set_xlim(0, max(min(max(values, default=1), limit), 1) * 1.22)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
