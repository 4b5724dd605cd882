"""PgBouncer in front of a PostgreSQL server, with one server connection that all clients share."""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from tempfile import mkdtemp

import psycopg
from postgres_server import USER, PostgresServer

# Debian's path of the program. /usr/sbin is often not on the PATH.
PROGRAM = "/usr/sbin/pgbouncer"
SETTINGS = """
[databases]
* = host={server} pool_size=1
[pgbouncer]
listen_port = 6432
listen_addr =
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
logfile = {folder}/log
server_reset_query_always = 0
"""


def pgbouncer_program() -> str:
    return shutil.which("pgbouncer") or PROGRAM


class PgBouncer:
    """Connection pool. `mode` is session or transaction. A transaction pool does not reset the connection between clients."""

    def __init__(self, server: PostgresServer, mode: str) -> None:
        self.folder = mkdtemp(prefix="iris")
        with open(f"{self.folder}/ini", "w") as file:
            file.write(SETTINGS.format(server=server.folder, folder=self.folder, mode=mode))
        with open(f"{self.folder}/users", "w") as file:
            file.write(f'"{USER}" ""\n')
        if os.getuid() == 0:
            shutil.chown(self.folder, USER)
        self.process = subprocess.Popen([*server.under, pgbouncer_program(), "-q", f"{self.folder}/ini"], cwd="/")
        self.url = self.url_of("postgres")
        deadline = time.monotonic() + 60
        while True:
            with suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.remove()
                raise AssertionError("PgBouncer does not start")
            time.sleep(0.01)

    def url_of(self, name: str) -> str:
        return f"postgresql://{USER}@/{name}?host={self.folder}&port=6432"

    def execute(self, sql: str, name: str = "postgres") -> list[tuple]:
        """Executes a statement like another application that uses the same pool."""
        with psycopg.connect(self.url_of(name), autocommit=True, prepare_threshold=None) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)
