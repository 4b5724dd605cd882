"""Chart of the CPU of a request and of the requests per second, one bar for each server."""

import json
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

OURS, OTHERS, INK = "#1b6e53", "#b9c2c9", "#22282d"


def main(path: str, bars: list[dict[str, Any]]) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.42 * len(bars) + 1.4), sharey=True, layout="constrained")
    draw(axes[0], bars, "cpu", "CPU µs of a request (less is better)")
    draw(axes[1], bars, "rate", "requests per second at 16 connections (more is better)")
    axes[0].set_yticks(range(len(bars)), [bar["title"] for bar in bars])
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def draw(axis: Any, bars: list[dict[str, Any]], figure: str, heading: str) -> None:
    """Draws a panel with a bar and a figure for each server."""
    values = [bar[figure] or 0 for bar in bars]
    axis.barh(range(len(bars)), values, color=[OURS if bar["ours"] else OTHERS for bar in bars], height=0.68)
    for i, value in enumerate(values):
        axis.annotate(f"{value:,.0f}", (value, i), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=9)
    axis.set_title(heading, fontsize=10, color=INK, loc="left")
    axis.set_xlim(0, max(values, default=1) * 1.14)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
