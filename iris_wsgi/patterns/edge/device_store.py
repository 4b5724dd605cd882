"""The folder of a device: its bundles, and one small file that says which of them answers."""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from iris_wsgi.errors import BadModel
from iris_wsgi.patterns.edge.bundle import Bundle, open_bundle
from iris_wsgi.storage.files import replace_file, sync

STATE, LOCK, BUNDLES = "device.json", "lock", "bundles"
MARK = "~"
# As mkdtemp calls the folder of a bundle; nothing else is ever removed.
is_folder = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]*-[0-9a-f]{12}~[0-9a-z_]{8}").fullmatch


class State(NamedTuple):
    """The folders of the bundle that answers and of the one that did before it, and whether that one was left by going back."""

    current: str | None = None
    previous: str | None = None
    went_back: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(name for name in (self.current, self.previous) if name is not None)


def is_of(folder: str | None, bundle: str) -> bool:
    """Whether it is a folder of this bundle."""
    return folder is not None and folder.rpartition(MARK)[0] == bundle


class Device:
    """Bundles are written beside each other and never changed; what takes effect, at once and durably, is a new STATE."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundles = folder, folder / BUNDLES

    def state(self) -> State:
        """Nothing, where there is nothing yet. Raises BadModel."""
        path = self.folder / STATE
        try:
            state = State(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise BadModel(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError):
            state = None
        if state is None or not all(isinstance(name, str) and is_folder(name) for name in state.folders):
            raise BadModel(f"{path} does not name the bundles of this device; remove it to begin anew")
        return state

    def bundle(self, name: str) -> Bundle:
        return open_bundle(self.bundles / name)

    def current(self) -> Bundle | None:
        """The bundle that answers. Raises BadModel."""
        state = self.state()
        return None if state.current is None else self.bundle(state.current)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Nobody else changes it meanwhile, and no bundle is left behind that is of no use. Raises BadModel."""
        try:
            self.bundles.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BadModel(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who was killed has left one, and perhaps no room for the next.
            self.sweep()
            try:
                yield
            finally:
                self.sweep()
        except BlockingIOError:
            raise BadModel(f"{self.folder} is being changed by another process") from None
        except OSError as error:
            raise BadModel(f"{self.folder} cannot be written: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def new_folder(self, bundle: str) -> Path:
        """For a bundle's files; all may read it, as they may what is made in it."""
        folder = Path(tempfile.mkdtemp(prefix=bundle + MARK, dir=self.bundles))
        folder.chmod(0o755)
        return folder

    def switch(self, state: State) -> None:
        """From here on these answer, after a loss of power too."""
        for name in state.folders:
            sync(self.bundles / name)
        sync(self.bundles)
        replace_file(self.folder / STATE, json.dumps(state._asdict()).encode())

    def sweep(self) -> None:
        """Removes the folders of bundles that are neither the current nor the previous one."""
        state = self.state()
        for path in self.bundles.iterdir():
            if is_folder(path.name) and path.name not in state.folders:
                shutil.rmtree(path, ignore_errors=True)
