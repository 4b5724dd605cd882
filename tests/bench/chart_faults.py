"""Chart of the faults: the slowest responses of a gateway before, during, and after each fault, in one panel each."""

import json
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COMPLETE, PARTIAL, FAULT, INK = "#1b6e53", "#c7821f", "#f1e7e4", "#22282d"
COLUMNS = 3


def main(path: str, data: dict[str, Any]) -> None:
    panels = data["panels"]
    rows = -(-len(panels) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(11, 2.3 * rows + 0.6), sharex=True, sharey=True, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        draw(axis, panel, data)
    for axis in axes[:, 0]:
        axis.set_ylabel("slowest response, ms", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("seconds since the fault began", fontsize=8)
    key = f"shaded: the fault; green: most responses are complete, orange: partial; line: the deadline of {data['deadline']} ms"
    figure.suptitle(f"A member … ({key})", fontsize=10, color=INK, x=0.01, ha="left")
    figure.savefig(path, dpi=110)


def draw(axis: Any, panel: dict[str, Any], data: dict[str, Any]) -> None:
    """Draws the panel of a fault, with one bar for each step of time."""
    if panel["over"]:
        axis.axvspan(0, panel["over"], color=FAULT, zorder=0)
    axis.axhline(data["deadline"], color=INK, linewidth=0.8, zorder=1)
    for at, slowest, partial in panel["points"]:
        axis.bar(at, slowest, data["step"] * 0.9, align="edge", color=PARTIAL if partial > 0.5 else COMPLETE, zorder=2)
    axis.set_yscale("log")
    axis.set_ylim(1, 1000)
    axis.set_title(panel["title"], fontsize=9, color=INK, loc="left")
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
