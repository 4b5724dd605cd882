"""Files that replace other files atomically and durably, and output files that grow while a run writes them."""

import errno
import fcntl
import os
import stat
from pathlib import Path

from iris_wsgi.settings import BadSetting

# Suffixes of an output file until it is complete, and of its conversion to another format.
PARTIAL, WHOLE = ".partial", ".whole"
KINDS = {
    stat.S_IFBLK: "it is a block device",
    stat.S_IFCHR: "it is a character device",
    stat.S_IFIFO: "it is a FIFO",
    stat.S_IFSOCK: "it is a socket",
}


def destination(path: Path) -> Path:
    """Returns the path that a rename may replace: `path` itself, or the target of a symbolic link.

    Raises OSError if the path is not a regular file: a rename would remove a device or a FIFO for every process.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        kind = stat.S_IFMT(os.stat(target).st_mode)
    except FileNotFoundError:
        return target
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"{KINDS.get(kind, 'it is')}, not a regular file", str(path))
    return target


def temporary_path(path: Path) -> Path:
    """Returns the path of the new content of a file until replace_file() renames it."""
    return path.with_name(f".{path.name}.new")


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file atomically and durably: a reader sees the old content or the new content. Raises OSError."""
    target = destination(path)
    new = temporary_path(target)
    # A symbolic link with this name must not be followed.
    new.unlink(missing_ok=True)
    try:
        new.write_bytes(content)
        move_into_place(new, target)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def move_into_place(temporary: Path, path: Path) -> None:
    """Renames a complete file durably. Raises OSError, also if `path` must not be replaced."""
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


class AppendFile:
    """Output file that one run at a time may write. With `temporary` its name is PATH.partial until it is complete."""

    def __init__(self, path: Path, temporary: bool) -> None:
        """Raises BadSetting if another run writes the file, or if the file cannot be written."""
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL) if temporary else path
        self.length = 0
        try:
            destination(self.path)
            destination(self.partial)
            self.descriptor = self.open_locked()
        except OSError as error:
            raise BadSetting(f"{error.filename or self.partial} cannot be written: {error.strerror}") from None

    def open_locked(self) -> int:
        while True:
            descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The run that held the lock may have renamed the file.
                if os.path.samestat(os.fstat(descriptor), os.stat(self.partial)):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise BadSetting(f"another run is writing {self.path}") from None
            except FileNotFoundError:
                pass
            os.close(descriptor)

    @property
    def size(self) -> int:
        """The size of the file on disk, which may exceed `length` after a crash."""
        return os.fstat(self.descriptor).st_size

    def begin(self, length: int) -> None:
        """Continues after `length` bytes. The checkpoint does not cover the bytes after them."""
        os.ftruncate(self.descriptor, length)
        os.lseek(self.descriptor, length, os.SEEK_SET)
        self.length = length

    def write(self, data: bytes) -> None:
        write_all(self.descriptor, data)
        self.length += len(data)

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def finish(self) -> None:
        """Renames the complete file to its path."""
        move_into_place(self.partial, self.path)

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)

    def close(self) -> None:
        if self.size == 0:
            self.discard()
        os.close(self.descriptor)


class StdStream:
    """Output that is not a regular file, such as a standard stream. Written bytes cannot be removed."""

    length = size = 0

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, data: bytes) -> None:
        write_all(self.descriptor, data)

    def close(self) -> None:
        os.close(self.descriptor)

    def begin(self, length: int) -> None: ...
    def sync(self) -> None: ...
    def finish(self) -> None: ...
    def discard(self) -> None: ...
