"""Chart of a soak: the memory of each process, and the faults."""

from pathlib import Path

import matplotlib
from faults import Window
from resource_sampler import ResourceSampler

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(sampler: ResourceSampler, windows: list[Window], began: float, since: float, until: float, out: Path) -> None:
    """Draws one panel for each server with one line for each process; the steady time is shaded."""
    servers = list(sampler.deployment.servers)
    rows = -(-len(servers) // 4)
    figure, panels = pyplot.subplots(rows, 4, figsize=(16, 3 * rows), sharex=True, squeeze=False)
    for panel, name in zip(panels.flat, servers, strict=False):
        for pid, samples in sampler.samples.items():
            server, kind = sampler.names[pid]
            if server == name:
                minutes = [(sample.at - began) / 60 for sample in samples]
                memory = [sample.private_kb / 1024 for sample in samples]
                panel.plot(minutes, memory, linewidth=1, linestyle=":" if kind == "parent" else "-")
        panel.axvspan((since - began) / 60, (until - began) / 60, alpha=0.08)
        for fault, begin, _ in windows:
            if name in fault.name:
                panel.axvline((begin - began) / 60, linewidth=0.5, color="tab:red")
        panel.set_title(name)
        panel.set_ylim(bottom=0)
    for panel in panels[-1]:
        panel.set_xlabel("minutes")
    for row in panels:
        row[0].set_ylabel("private memory in MiB")
    figure.tight_layout()
    figure.savefig(out, dpi=80)
