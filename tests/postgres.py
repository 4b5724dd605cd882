"""A PostgreSQL server of the tests' own: Debian's programs, a folder, a socket in it, no TCP."""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import mkdtemp

from conftest import need

USER = "postgres"


def program(name: str) -> str:
    """Debian keeps what belongs to a server beside its version, and not on the PATH."""
    need("pg_ctlcluster")
    return str(max(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4])))


class PostgresServer:
    """As nobody but the one who runs the tests can reach it, it trusts; and it need not outlive the machine."""

    def __init__(self) -> None:
        # A socket's path must be short.
        self.folder = Path(mkdtemp(prefix="iris"))
        # It refuses to be root's.
        self.under = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
        if self.under:
            shutil.chown(self.folder, USER)
        self.data = self.folder / "data"
        self.run("initdb", "-A", "trust", "-U", USER, "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={self.folder}"

    def run(self, name: str, *arguments: str) -> None:
        command = [*self.under, program(name), "-D", str(self.data), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        told = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off -c max_connections=40"
        self.run("pg_ctl", "-w", "-s", "-l", str(self.folder / "log"), "-o", told, "start")

    def stop(self) -> None:
        """At once, as if it had crashed."""
        self.run("pg_ctl", "-w", "-s", "-m", "immediate", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
