"""Redis server on a Unix socket. conftest.py has fixtures for it."""

import shutil
import subprocess
from pathlib import Path
from tempfile import mkdtemp

import redis
from optional_programs import require_program


class RedisServer:
    """Redis server. A durable server writes each change to the disk before it responds."""

    def __init__(self, durable: bool = True) -> None:
        require_program("redis-server")
        self.durable = durable
        # A socket's path must be short.
        self.folder = Path(mkdtemp(prefix="iris"))
        self.url = f"unix://{self.folder}/s"
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", "0", "--unixsocket", f"{self.folder}/s", "--dir", str(self.folder)]
        command += ["--save", "", *(("--appendonly", "yes", "--appendfsync", "always") if self.durable else ())]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert any("ready to accept" in line.lower() for line in self.process.stdout)

    def execute(self, *words: str) -> object:
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        """Kills the server. Does nothing if it is already dead."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def remove(self) -> None:
        # SIGKILL also ends a server that SIGSTOP has stopped.
        self.kill()
        shutil.rmtree(self.folder)
