"""Processes whose standard output is a terminal, on which a server prints its start for people."""

import os
import re
import subprocess
from contextlib import suppress
from typing import Any

from iris_wsgi.server.serve import STARTED

has_last_line = re.compile(rb"^try: .*\n", re.MULTILINE).search


class TerminalProcess(subprocess.Popen):
    """Process of a server. communicate() returns its standard error without the line of the start."""

    def __init__(self, command: list, **options: Any) -> None:
        self.terminal, output = os.openpty()
        self.outputs: tuple[str, str] | None = None
        try:
            super().__init__(command, stdout=output, text=True, **options)
        finally:
            os.close(output)

    def startup_lines(self) -> list[str]:
        """Reads the lines of the start, or those up to the end of the process. Closes the terminal."""
        text = b""
        # The end of a terminal is an error.
        with suppress(OSError):
            while not has_last_line(text):
                text += os.read(self.terminal, 65536)
        os.close(self.terminal)
        return text.decode().splitlines()

    def communicate(self, *arguments: Any, **options: Any) -> tuple[str, str]:
        if self.outputs is None:
            _, errors = super().communicate(*arguments, **options)
            lines = (errors or "").splitlines(keepends=True)
            self.outputs = "", "".join(line for line in lines if STARTED not in line)
        return self.outputs
