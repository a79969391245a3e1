"""The one layer that touches the disk: all that a run does to files is a call of `os` in here.

So a test that replaces this module's `os` can fail or kill the process at any operation. What is
written is wholly there or not at all: a temporary name, fsync, one rename, fsync of the folder.
Temporary names begin with `.tmp-`; who holds the run's lock may remove them (`remove_temporaries`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from rlpg.errors import FileError, UsageError

TEMPORARY = ".tmp-"
_NO_SURPRISES = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # by links, pipes, children


class Reader:
    """A regular file that is open for reading; see `reading`."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self.size = path, size
        self._descriptor = descriptor

    def take(self, count: int) -> bytearray:
        """The next `count` bytes; FileError where the file has fewer."""
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count and (got := os.readv(self._descriptor, [view[done:]])):
            done += got
        if done < count:
            raise FileError(f"{self.path}: expected {count} bytes more, got {done}")
        return data


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Open a regular file; whoever reads it judges its size and its claims before taking more.

    A link in the last place is not followed, and nothing hangs: a pipe, a socket or a device is
    refused without waiting for its other end.

    Raises:
        FileError: the file is missing, unreadable, or not a regular file.
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
        yield Reader(path, descriptor, status.st_size)
    except OSError as error:
        raise FileError(f"{path}: expected a readable file, got {error.strerror}") from None
    finally:
        os.close(descriptor)


def read(path: Path, *, limit: int) -> bytearray:
    """All bytes of a regular file of at most `limit` bytes; FileError as in `reading`."""
    with reading(path) as file:
        if file.size > limit:
            raise FileError(f"{path}: expected at most {limit} bytes, got {file.size}")
        return file.take(file.size)


def write(path: Path, data: bytes | bytearray) -> None:
    """Put `data` at `path`, atomically: a reader sees the old file or the new one, never a mix."""
    temporary = _temporary(path, "new")
    try:
        remove_tree(temporary)
        _write_new(temporary, data)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            remove_tree(temporary)
        raise
    sync_folder(path.parent)


def publish(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Make a folder with the given files appear, complete, where nothing or an empty one is.

    Raises:
        FileExistsError: something is there.
        OSError: the disk refused; nothing has appeared.
    """
    temporary = _temporary(folder, "new")
    try:
        remove_tree(temporary)
        os.mkdir(temporary)
        for name, data in contents.items():
            _write_new(temporary / name, data)
        sync_folder(temporary)
        _rename_to_free(temporary, folder)
    except BaseException:
        with suppress(OSError):
            remove_tree(temporary)
        raise
    try:
        sync_folder(folder.parent)
    except BaseException:
        with suppress(OSError):
            discard(folder)
        raise


def _rename_to_free(source: Path, folder: Path) -> None:
    try:
        os.rename(source, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder)) from None
        raise


def append(path: Path, data: bytes, *, position: int) -> int:
    """Put `data` at `position`, the known end of the file, and cut what lies beyond.

    Returns:
        the new end. An append that failed half-way is undone, or else by the next one at the same
        position.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | _NO_SURPRISES, 0o666)
    try:
        position = min(position, os.fstat(descriptor).st_size)
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


def make_folder(folder: Path) -> list[Path]:
    """Create the folder and the parents it lacks; the ones made, outermost first."""
    if os.path.isdir(folder):
        return []
    made = make_folder(folder.parent)
    try:
        os.mkdir(folder)
    except FileExistsError:  # another process was faster, or a file is there
        if not os.path.isdir(folder):
            remove_empty(made)
            raise
        return made
    except BaseException:
        remove_empty(made)
        raise
    return [*made, folder]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, outermost first in the list, that hold nothing; leave the others."""
    for folder in reversed(list(folders)):
        with suppress(OSError):
            os.rmdir(folder)


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
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a regular file is there; a link to one is not."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all it holds; links are not followed; nothing is fine too."""
    if is_folder(path):
        for entry in entries(path):
            remove_tree(entry)
        os.rmdir(path)
    elif exists(path):
        os.unlink(path)


def discard(path: Path) -> None:
    """Take a file or folder away at once, then remove it; killed between, a temporary remains."""
    if exists(path):
        temporary = _temporary(path, "old")
        remove_tree(temporary)
        os.rename(path, temporary)
        remove_tree(temporary)


def remove_temporaries(folder: Path, of: str = "") -> None:
    """Remove what writers that were killed left in the folder. Call it under the folder's lock.

    Args:
        of: only what was meant to become the entry of this name; "" for all.
    """
    ours = re.compile(re.escape(f"{TEMPORARY}{of}") + (r"-(new|old)-\d+" if of else ".*"), re.S)
    for entry in entries(folder):
        if ours.fullmatch(entry.name):
            remove_tree(entry)


def sync_folder(folder: Path) -> None:
    """Make the names in the folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Anchor:
    """Tells whether a folder's path still leads to the folder that it led to.

    A folder that is open keeps its number, so another one at its path is told from it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]

    def check(self) -> None:
        """OSError where the folder was removed, moved or replaced: nothing may be written there."""
        try:
            is_there = os.path.samestat(os.stat(self._folder), os.fstat(self._held[0]))
        except OSError:
            is_there = False
        if not is_there:
            raise OSError(errno.ENOENT, "the run's folder was removed, moved or replaced")

    def close(self) -> None:
        """Let go of the folder."""
        _close_all(self._held)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file for the length of a `with`; the kernel frees it however the process dies.

    Raises:
        UsageError: another process holds it; the message has its process id.
        FileError: it cannot be opened, or is not a regular file.
    """
    try:
        held = [os.open(path, os.O_RDWR | os.O_CREAT | _NO_SURPRISES, 0o666)]
    except OSError as error:
        raise FileError(f"{path}: expected a file to lock, got {error.strerror}") from None
    # A forked worker would share the lock, and hold it still if only its parent was killed.
    os.register_at_fork(after_in_child=lambda: _close_all(held))
    try:
        if not stat.S_ISREG(os.fstat(held[0]).st_mode):
            raise FileError(f"{path}: expected a regular file, got something else")
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(held[0], 32).decode(errors="replace").strip() or "unknown"
            raise UsageError(
                f"{path.parent}: expected a run that no one writes to, got one in use by process "
                f"{holder}; wait for it or stop it"
            ) from None
        os.ftruncate(held[0], 0)
        os.write(held[0], f"{os.getpid()}\n".encode())
        yield
    finally:
        _close_all(held)  # the file stays: removing it would race with the next holder


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Wait until no other process is in such a `with` for this folder; nothing is left in it.

    Gives False where the file system cannot lock a folder (NFS): then others may be in it too.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_alone = True
        except OSError:
            is_alone = False
        yield is_alone
    finally:
        os.close(descriptor)


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _temporary(path: Path, age: str) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}-{age}-{os.getpid()}")


def _write_new(path: Path, data: bytes | bytearray) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
