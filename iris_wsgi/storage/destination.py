"""Files that take the place of other files: where a rename may put them, and what it must not replace."""

import errno
import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFBLK: "it is a block device",
    stat.S_IFCHR: "it is a character device",
    stat.S_IFIFO: "it is a FIFO",
    stat.S_IFSOCK: "it is a socket",
}


def destination(path: Path) -> Path:
    """Returns the path that a rename may replace: `path` itself, or the target of a symbolic link.

    Raises OSError if something other than a regular file is there: a rename would remove a device or a FIFO for everybody.
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


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears at once with its whole content. Raises OSError."""
    target = destination(path)
    new = target.with_name(f".{target.name}.new")
    # A link that somebody left under this name must not be followed.
    new.unlink(missing_ok=True)
    try:
        new.write_bytes(content)
        os.replace(new, target)
    except OSError:
        new.unlink(missing_ok=True)
        raise
