"""A real PostgreSQL, on a socket in a folder of its own; conftest.py has a fixture of it."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import psycopg
from http_clients import child_pids, wait_until
from optional_programs import require_program

# PostgreSQL refuses to run as root, and Debian's package has this user.
USER = "postgres"


def postgres_program(name: str) -> str:
    """Where Debian puts it, or its name. Debian keeps the servers off the PATH, behind wrappers that are on it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) if shutil.which("pg_ctlcluster") else []
    return str(found[-1]) if found else name


class PostgresServer:
    """As nobody but the one who runs the tests can reach it, it trusts; and it need not outlive the machine."""

    def __init__(self) -> None:
        require_program(postgres_program("postgres"))
        # A socket's path must be short.
        self.folder = Path(mkdtemp(prefix="iris"))
        self.url = f"postgresql://{USER}@/postgres?host={self.folder}"
        self.under: list[str] = []
        if os.getuid() == 0:
            shutil.chown(self.folder, USER)
            self.under = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
        data = f"{self.folder}/data"
        made = [
            *self.under,
            postgres_program("initdb"),
            "-D",
            data,
            "-U",
            USER,
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ]
        subprocess.run(made, check=True, capture_output=True, cwd="/")
        self.start()

    def start(self) -> None:
        command = [*self.under, postgres_program("postgres"), "-D", f"{self.folder}/data", "-k", str(self.folder)]
        command += ["-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "max_connections=100", "-c", "fsync=off"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        wait_until(self.answers, "PostgreSQL answers")

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with suppress(psycopg.OperationalError):
            self.ask("SELECT 1")
            return True
        return False

    def ask(self, sql: str, *values: object) -> list[tuple]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def database(self, name: str) -> str:
        """The URL of a new one."""
        self.ask(f'CREATE DATABASE "{name}"')
        return f"postgresql://{USER}@/{name}?host={self.folder}"

    def signal(self, number: int) -> None:
        """To the server, and to all that it has begun."""
        for pid in (self.process.pid, *child_pids(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """At once, as after a crash: what was acknowledged is there when it starts again."""
        self.signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    def remove(self) -> None:
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)
