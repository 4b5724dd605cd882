"""Sections of the benchmark: each measures its rounds and writes its part of the document."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import batch
import batching
import caching
import engines
import head_of_line
import items
import jobs
import protocol
import remote
import report
import runner
from bench import Bench
from results import Results
from servers import SERVERS


class Section(NamedTuple):
    """Functions of a section, its servers, its additional environments, and the function that draws its chart, if any."""

    measure_round: Callable[[int, Bench, Results], None]
    text: Callable[[Results], str]
    servers: tuple[str, ...]
    environments: tuple[str, ...]
    draw: Callable[[Path, Results, str], None] | None = None


# The order of the document.
SECTIONS = {
    "servers": Section(runner.measure_round, report.text, tuple(server.name for server in SERVERS), ("chart",), report.draw),
    "protocol": Section(protocol.measure_round, protocol.text, ("ours", "uvicorn"), ()),
    "holdup": Section(head_of_line.measure_round, head_of_line.text, ("ours", "uvicorn"), ()),
    "batching": Section(batching.measure_round, batching.text, ("ours",), ("models",)),
    "caching": Section(caching.measure_round, caching.text, (), ("redis", "models")),
    "items": Section(items.measure_round, items.text, (), ("ours", "redis", "postgres", "models")),
    "jobs": Section(jobs.measure_round, jobs.text, (), ("ours", "redis")),
    "remote": Section(remote.measure_round, remote.text, (), ("ours", "chart"), remote.draw),
    "batch": Section(batch.measure_round, batch.text, (), batch.USED),
    "engines": Section(engines.measure_round, engines.text, (), engines.USED),
}
