"""Files that grow while a run goes on, and go on growing after its death; one run at a time may write them."""

import fcntl
import os
from pathlib import Path

from iris_wsgi.settings import BadSetting
from iris_wsgi.storage.destination import destination

# The suffix of a file while it is written.
PARTIAL = ".partial"


class Growing:
    """A file that this run alone writes; with `temporary` it is called PATH.partial until it is whole."""

    def __init__(self, path: Path, temporary: bool) -> None:
        """Raises BadSetting if another run has it, or it cannot be made, or something else than a regular file is there."""
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL) if temporary else path
        self.length = 0
        try:
            destination(self.path)
            destination(self.partial)
            self.descriptor = self.locked()
        except OSError as error:
            raise BadSetting(f"{error.filename or self.partial} cannot be written: {error.strerror}") from None

    def locked(self) -> int:
        while True:
            descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # It may have been renamed by the run that had it until now.
                if os.path.samestat(os.fstat(descriptor), os.stat(self.partial)):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise BadSetting(f"another run is writing {self.path}") from None
            except FileNotFoundError:
                pass
            os.close(descriptor)

    @property
    def bytes_there(self) -> int:
        return os.fstat(self.descriptor).st_size

    def begin(self, length: int) -> None:
        """Goes on behind so many bytes; what is there beyond was not noted as done."""
        os.ftruncate(self.descriptor, length)
        os.lseek(self.descriptor, length, os.SEEK_SET)
        self.length = length

    def write(self, data: bytes) -> None:
        write_all(self.descriptor, data)
        self.length += len(data)

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def finish(self) -> None:
        """The whole file takes its place, and that of what was there."""
        put_in_place(self.partial, self.path)

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)

    def close(self) -> None:
        if self.bytes_there == 0:
            self.discard()
        os.close(self.descriptor)


class Standard:
    """A descriptor of something that is not a regular file, such as a standard stream: nothing can be taken back from it."""

    length = bytes_there = 0

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def begin(self, length: int) -> None: ...

    def write(self, data: bytes) -> None:
        write_all(self.descriptor, data)

    def sync(self) -> None: ...
    def finish(self) -> None: ...
    def discard(self) -> None: ...

    def close(self) -> None:
        os.close(self.descriptor)


def put_in_place(temporary: Path, path: Path) -> None:
    """Gives a whole file its name, which is then as durable as its content. Raises OSError, for what must not be replaced too."""
    sync(temporary)
    temporary.replace(destination(path))
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
