"""The command batch: a file or a table, scored to its end."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from iris_wsgi.batch import options
from iris_wsgi.cpus import workers_for
from iris_wsgi.settings import Settings


def add_flags(parser: argparse.ArgumentParser) -> None:
    options.add_flags(parser)


def batch(settings: Settings, given: Mapping[str, Any]) -> int:
    """The status; 0 is good. Raises BadSetting and BadModel."""
    if given["table"] is not None:
        from iris_wsgi.batch.table import run_table
        from iris_wsgi.batch.table_options import table_options_of

        return run_table(table_options_of(given, settings.database_url), settings, say)
    from iris_wsgi.batch.run import run_file

    return run_file(options.options_of(given), settings, workers_for(settings)[0], say)


def say(line: str) -> None:
    """Standard output may be the output itself."""
    print(f"iris_wsgi: {line}", file=sys.stderr, flush=True)
