"""PostgreSQL server on a Unix socket. conftest.py has a fixture for it."""

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

# PostgreSQL refuses to run as root. Debian's package creates this user.
USER = "postgres"


def postgres_program(name: str) -> str:
    """Returns the path of a program in Debian's package, or its name. Debian does not put the servers on the PATH."""
    paths = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) if shutil.which("pg_ctlcluster") else []
    return str(paths[-1]) if paths else name


class PostgresServer:
    """Server without passwords, because only the user of the tests can reach it, and without fsync."""

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
        command = [
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
        subprocess.run(command, check=True, capture_output=True, cwd="/")
        self.start()

    def start(self) -> None:
        command = [*self.under, postgres_program("postgres"), "-D", f"{self.folder}/data", "-k", str(self.folder)]
        command += ["-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "max_connections=100", "-c", "fsync=off"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        wait_until(self.is_ready, "PostgreSQL is ready")

    def is_ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with suppress(psycopg.OperationalError):
            self.execute("SELECT 1")
            return True
        return False

    def execute(self, sql: str, *values: object) -> list[tuple]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, encoding: str = "UTF8") -> str:
        """Creates a database and returns its URL."""
        # The locale of the server is of UTF-8, and C is of every encoding.
        self.execute(f"""CREATE DATABASE "{name}" ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0""")
        return f"postgresql://{USER}@/{name}?host={self.folder}"

    def signal(self, number: int) -> None:
        """Sends a signal to the server and to its child processes."""
        for pid in (self.process.pid, *child_pids(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """Stops the server at once, like a crash. Acknowledged transactions survive."""
        self.signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    def remove(self) -> None:
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)
