"""Row of this project at an earlier commit, for the option --against."""

import subprocess
from pathlib import Path

from environments import HOME, PACKAGES, ROOT, Unavailable
from servers import SERVERS

NAME = "earlier"


def add_row(commit: str) -> None:
    """Adds a row with the options of our server, after its row. Raises Unavailable."""
    digest = run("git", "-C", str(ROOT), "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")
    (at,) = (i for i, server in enumerate(SERVERS) if server.name == "ours")
    PACKAGES[NAME] = (str(extract(digest)),)
    title = f"iris_wsgi at {digest[:7]}"
    SERVERS.insert(at + 1, SERVERS[at]._replace(name=NAME, title=title, environment=NAME, note="an earlier commit"))


def extract(digest: str) -> Path:
    """Returns the folder with the files of a commit. Raises Unavailable."""
    folder = HOME / "commits" / digest
    folder.mkdir(parents=True, exist_ok=True)
    run("git", "-C", str(ROOT), "archive", f"--output={folder}.tar", digest)
    run("tar", "-xf", f"{folder}.tar", "-C", str(folder))
    return folder


def run(*command: str) -> str:
    """Returns the output of a command. Raises Unavailable."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{command[0]} did not run: {error}") from None
    if done.returncode:
        raise Unavailable(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()
