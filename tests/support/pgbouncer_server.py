"""A real PgBouncer in front of a PostgreSQL, with one connection of its own that all clients share."""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from tempfile import mkdtemp

import psycopg
from postgres_server import USER, PostgresServer

# Debian has it where a PATH without the system's own programs does not look.
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
    """`mode` is session or transaction. Nothing resets a connection of a transaction pool between two clients."""

    def __init__(self, server: PostgresServer, mode: str) -> None:
        self.folder = mkdtemp(prefix="iris")
        with open(f"{self.folder}/ini", "w") as file:
            file.write(SETTINGS.format(server=server.folder, folder=self.folder, mode=mode))
        with open(f"{self.folder}/users", "w") as file:
            file.write(f'"{USER}" ""\n')
        if os.getuid() == 0:
            shutil.chown(self.folder, USER)
        self.process = subprocess.Popen([*server.under, pgbouncer_program(), "-q", f"{self.folder}/ini"], cwd="/")
        self.url = self.database("postgres")
        end = time.monotonic() + 60
        while True:
            with suppress(psycopg.OperationalError):
                self.ask("SELECT 1")
                return
            if time.monotonic() > end or self.process.poll() is not None:
                self.remove()
                raise AssertionError("PgBouncer does not start")
            time.sleep(0.01)

    def database(self, name: str) -> str:
        return f"postgresql://{USER}@/{name}?host={self.folder}&port=6432"

    def ask(self, sql: str, name: str = "postgres") -> list[tuple]:
        """As another application through the same pool."""
        with psycopg.connect(self.database(name), autocommit=True, prepare_threshold=None) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)
