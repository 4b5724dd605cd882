"""Folder of a device: its bundles, and a small file with the current and the previous one."""

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
SEPARATOR = "~"
# A bundle's name and the suffix of mkdtemp. Nothing else is ever removed.
is_folder = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]*-[0-9a-f]{12}~[0-9a-z_]{8}").fullmatch


class DeviceState(NamedTuple):
    """Folders of the current and the previous bundle; `went_back` after a rollback from the previous bundle."""

    current: str | None = None
    previous: str | None = None
    went_back: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(name for name in (self.current, self.previous) if name is not None)


def is_folder_of(folder: str | None, bundle: str) -> bool:
    return folder is not None and folder.rpartition(SEPARATOR)[0] == bundle


class DeviceStore:
    """Bundles on a device. A bundle never changes; replacing STATE activates another one, atomically and durably."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundles = folder, folder / BUNDLES

    def state(self) -> DeviceState:
        """Reads STATE; an empty state if it does not exist. Raises BadModel."""
        path = self.folder / STATE
        try:
            state = DeviceState(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return DeviceState()
        except OSError as error:
            raise BadModel(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError):
            state = None
        if state is None or not all(isinstance(name, str) and is_folder(name) for name in state.folders):
            raise BadModel(f"{path} does not name the bundles of this device; remove it to start again")
        return state

    def bundle(self, name: str) -> Bundle:
        return open_bundle(self.bundles / name)

    def current(self) -> Bundle | None:
        """Raises BadModel."""
        state = self.state()
        return None if state.current is None else self.bundle(state.current)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Locks the device against other processes, and removes unused bundles. Raises BadModel."""
        try:
            self.bundles.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BadModel(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A killed update may have left a bundle, and no disk space for the next.
            self.sweep()
            try:
                yield
            finally:
                self.sweep()
        except BlockingIOError:
            raise BadModel(f"{self.folder} is in use by another update or rollback") from None
        except OSError as error:
            raise BadModel(f"{self.folder} cannot be written: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def new_folder(self, bundle: str) -> Path:
        """Creates the folder of a bundle, readable by all users."""
        folder = Path(tempfile.mkdtemp(prefix=bundle + SEPARATOR, dir=self.bundles))
        folder.chmod(0o755)
        return folder

    def activate(self, state: DeviceState) -> None:
        """Replaces STATE, after its bundles are durable."""
        for name in state.folders:
            sync(self.bundles / name)
        sync(self.bundles)
        replace_file(self.folder / STATE, json.dumps(state._asdict()).encode())

    def sweep(self) -> None:
        """Removes the folders of all bundles except the current and the previous one."""
        state = self.state()
        for path in self.bundles.iterdir():
            if is_folder(path.name) and path.name not in state.folders:
                shutil.rmtree(path, ignore_errors=True)
