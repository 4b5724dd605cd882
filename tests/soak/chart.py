"""The soak as a picture: the memory of each process, and when what went wrong."""

from pathlib import Path

import matplotlib
from faults import Window
from gauge import Gauge

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(gauge: Gauge, windows: list[Window], began: float, since: float, till: float, out: Path) -> None:
    """A line for each process, a panel for each server; the steady part is shaded."""
    servers = list(gauge.fleet.servers)
    rows = -(-len(servers) // 4)
    figure, panels = pyplot.subplots(rows, 4, figsize=(16, 3 * rows), sharex=True, squeeze=False)
    for panel, name in zip(panels.flat, servers, strict=False):
        for pid, samples in gauge.samples.items():
            server, kind = gauge.names[pid]
            if server == name:
                minutes = [(one.at - began) / 60 for one in samples]
                panel.plot(minutes, [one.own / 1024 for one in samples], linewidth=1, linestyle=":" if kind == "parent" else "-")
        panel.axvspan((since - began) / 60, (till - began) / 60, alpha=0.08)
        for fault, begin, _ in windows:
            if name in fault.name:
                panel.axvline((begin - began) / 60, linewidth=0.5, color="tab:red")
        panel.set_title(name)
        panel.set_ylim(bottom=0)
    for panel in panels[-1]:
        panel.set_xlabel("minutes")
    for row in panels:
        row[0].set_ylabel("MiB of its own")
    figure.tight_layout()
    figure.savefig(out, dpi=80)
