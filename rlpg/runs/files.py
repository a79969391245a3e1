"""The one layer that touches the disk: all that a run does to files is a call of `os` in here.

So a test that replaces this module's `os` can fail or kill the process at any operation. What is
written is wholly there or not at all: a temporary name, fsync, one rename, fsync of the folder.
Temporary names begin with `.tmp-`; who holds the run's lock may remove them (`remove_temporaries`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlpg.errors import FileError, UsageError

TEMPORARY = ".tmp-"
_LONGEST_LINE = 1 << 20  # bytes
_NO_SURPRISES = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # by links, pipes, children


def read(path: Path, *, limit: int) -> bytearray:
    """All bytes of a regular file of at most `limit` bytes.

    A link in the last place is not followed, and nothing hangs: a pipe, a socket or a device is
    refused without waiting for its other end. FileError where the file is missing, unreadable, too
    large, or not a regular one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_SURPRISES)
    except ValueError as error:  # a name with a null byte
        raise FileError(f"{path}: expected the name of a file, got {error}") from None
    except OSError as error:
        reason = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise FileError(f"{path}: expected a readable file, got {reason}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"{path}: expected a regular file, got something else")
        if status.st_size > limit:
            raise FileError(f"{path}: expected at most {limit} bytes, got {status.st_size}")
        data = bytearray(status.st_size)
        view, done = memoryview(data), 0
        while done < len(data) and (got := os.readv(descriptor, [view[done:]])):
            done += got
        if done < len(data):
            raise FileError(f"{path}: expected {len(data)} bytes, got {done}")
        return data
    except OSError as error:
        raise FileError(f"{path}: expected a readable file, got {error.strerror}") from None
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes | bytearray) -> None:
    """Put `data` at `path`, atomically: a reader sees the old file or the new one, never a mix."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        remove_tree(temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o666)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            remove_tree(temporary)
        raise
    _sync_folder(path.parent)


def append(path: Path, data: bytes, *, position: int) -> int:
    """Put `data` at `position`, the known end of the file, and cut what lies beyond; the new end.

    Where the file had become shorter, `data` comes after its last whole line, and the end is a
    smaller one. An append that failed half-way is undone, or else by the next one at the same
    position.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_SURPRISES, 0o666)
    try:
        end = os.fstat(descriptor).st_size
        if end < position:
            position = max(end - _LONGEST_LINE, 0)
            position += os.pread(descriptor, end - position, position).rfind(b"\n") + 1
        os.ftruncate(descriptor, position)
        os.lseek(descriptor, position, os.SEEK_SET)
        try:
            _write_all(descriptor, data)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, position)  # no half a line
            raise
        return position + len(data)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create the folder and the parents it lacks, if it is not there."""
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
        _sync_folder(folder.parent)


def here() -> Path:
    """Where this process is, while there is such a place."""
    with suppress(FileNotFoundError):
        return Path.cwd()
    return Path()


@contextmanager
def staying() -> Iterator[Path]:
    """Where this process is, and is again at the end of the block: an environment may take it
    elsewhere."""
    place = here()
    try:
        yield place
    finally:
        if here() != place:
            with suppress(OSError):
                os.chdir(place)


def entries(folder: Path) -> list[Path]:
    """What is in the folder, sorted by name; empty where there is no folder."""
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def exists(path: Path) -> bool:
    """Whether anything is there, a dangling link included."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Whether a real folder is there; a link to one is not."""
    return os.path.isdir(path) and not os.path.islink(path)


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all it holds; links are not followed; nothing is fine too."""
    if is_folder(path):
        for entry in entries(path):
            remove_tree(entry)
        os.rmdir(path)
    elif exists(path):
        os.unlink(path)


def remove_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left in the folder. Call it under the folder's lock."""
    for entry in entries(folder):
        if entry.name.startswith(TEMPORARY):
            remove_tree(entry)


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[Callable[[], bool]]:
    """Hold the lock file for the length of a `with`, or `wait` until another process lets go of it;
    the kernel frees it however the process dies.

    Yields:
        what tells whether the file at the path is still the one that is held: not if it was moved
        away, also where another process of this id, in another container, has locked a new one.

    Raises:
        UsageError: another process holds it; the message has its process id.
        FileError: it cannot be opened or locked, or is not a regular file.
    """
    try:
        held = [os.open(path, os.O_RDWR | os.O_CREAT | _NO_SURPRISES, 0o666)]
    except OSError as error:
        raise FileError(f"{path}: expected a file to lock, got {error.strerror}") from None

    def close() -> None:
        while held:
            os.close(held.pop())

    def is_there() -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(held[0]), os.lstat(path))
        return False

    # A forked worker would share the lock, and hold it still if only its parent was killed.
    os.register_at_fork(after_in_child=close)
    try:
        if not stat.S_ISREG(os.fstat(held[0]).st_mode):
            raise FileError(f"{path}: expected a regular file, got something else")
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.read(held[0], 32).decode(errors="replace").strip() or "unknown"
            raise UsageError(
                f"{path.parent}: expected a run that no one writes to, got one in use by process "
                f"{holder}; wait for it or stop it"
            ) from None
        except OSError as error:
            raise FileError(
                f"{path.parent}: expected a file system with locks, got {error.strerror}; choose a "
                "folder elsewhere"
            ) from None
        os.ftruncate(held[0], 0)
        os.write(held[0], f"{os.getpid()}\n".encode())
        yield is_there
    finally:
        close()  # the file stays: removing it would race with the next holder


def _sync_folder(folder: Path) -> None:
    """Make the names in the folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
