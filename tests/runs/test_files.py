import ast
import os
import shutil
from pathlib import Path

import pytest

import rlpg.runs
from rlpg.errors import FileError
from rlpg.runs import files


def test_append_undoes_what_a_failed_one_left(tmp_path):
    path = tmp_path / "log"
    end = files.append(path, b"one\n", position=0)
    path.write_bytes(path.read_bytes() + b"hal")
    assert files.append(path, b"two\n", position=end) == 8
    assert path.read_bytes() == b"one\ntwo\n"


def test_append_cuts_what_is_longer_than_what_it_writes(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\nhalf of a long line")
    assert files.append(path, b"two\n", position=4) == 8
    assert path.read_bytes() == b"one\ntwo\n"


def test_append_to_a_file_that_was_cut_makes_no_hole(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    assert files.append(path, b"two\n", position=100) == 8
    assert path.read_bytes() == b"one\ntwo\n"


def test_half_a_line_that_a_power_failure_left_was_glued_to_the_next_one(tmp_path):
    path = tmp_path / "log"
    for left, kept in ((b"one\ntw", b"one\n"), (b"on", b""), (b"", b""), (None, b"")):
        path.unlink(missing_ok=True)
        if left is not None:
            path.write_bytes(left)
        assert files.append(path, b"new\n", position=8) == len(kept) + 4
        assert path.read_bytes() == kept + b"new\n"


def test_append_follows_no_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"):
        files.append(tmp_path / "log", b"x", position=0)
    assert (tmp_path / "mine").read_text() == "mine"


def test_write_replaces_a_link_and_not_its_target(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "mine")
    files.write(tmp_path / "file", b"new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()


def test_write_survives_a_temporary_of_a_killed_process_with_the_same_id(tmp_path):
    (tmp_path / f".tmp-file-{os.getpid()}").write_text("left over")
    files.write(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_write_syncs_the_content_before_the_name_and_then_the_folder(tmp_path, monkeypatch):
    """Else a power failure may leave the name without the content."""
    done = []

    class Recorder:
        def __getattr__(self, name):
            original = getattr(os, name)
            if name not in ("write", "fsync", "rename", "makedirs"):
                return original
            return lambda *args, **options: (done.append(name), original(*args, **options))[1]

    monkeypatch.setattr(files, "os", Recorder())
    files.write(tmp_path / "file", b"new")
    assert done == ["write", "fsync", "rename", "fsync"]
    done.clear()
    files.make_folder(tmp_path / "a" / "folder")
    files.make_folder(tmp_path / "a" / "folder")
    assert done == ["makedirs", "fsync"]


def test_remove_tree_follows_no_link(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "mine")
    files.remove_tree(tmp_path / "folder")
    files.remove_tree(tmp_path / "folder")
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_a_lock_that_was_moved_away_is_not_held(tmp_path):
    """A copy, or the lock of a process of the same id in another container, counted as held."""
    run = tmp_path / "run"
    run.mkdir()
    with files.lock(run / "lock") as is_there:
        assert is_there()
        run.rename(tmp_path / "elsewhere")
        assert not is_there()
        shutil.copytree(tmp_path / "elsewhere", run)
        assert not is_there()


def test_lock_file_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "run.lock").symlink_to(tmp_path / "target")
    refused = pytest.raises(FileError, match=r"run\.lock: expected a file to lock, got Too many le")
    with refused, files.lock(tmp_path / "run.lock"):
        pass
    assert not (tmp_path / "target").exists()


def test_a_pipe_makes_nobody_wait(tmp_path):
    """`rlpg resume` of a run whose lock or log is a pipe waited for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="expected a regular file"), files.lock(tmp_path / "pipe"):
        pass
    with pytest.raises(OSError, match="Invalid argument"):
        files.append(tmp_path / "pipe", b"x", position=0)
    with pytest.raises(FileError, match="expected a regular file"):
        files.read(tmp_path / "pipe", limit=10)


def test_reading_what_cannot_be_read(tmp_path):
    with pytest.raises(FileError, match="expected a readable file, got No such file"):
        files.read(tmp_path / "nothing", limit=10)
    with pytest.raises(FileError, match="expected the name of a file, got embedded null"):
        files.read(Path("null\0byte"), limit=10)
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(FileError, match="expected at most 10 bytes, got 11"):
        files.read(tmp_path / "file", limit=10)
    assert files.read(tmp_path / "file", limit=11) == bytes(11)


DISK = {
    "open", "mkdir", "unlink", "rename", "rmdir", "touch", "write_text", "write_bytes", "read_text",
    "read_bytes", "symlink_to", "exists", "is_file", "is_dir", "iterdir", "glob", "np.load",
    "np.save", "save_file", "load_file",
}  # fmt: skip


def test_nothing_else_in_the_room_touches_the_disk():
    """What bypasses `files` would bypass the crash tests."""
    offences = []
    for path in Path(rlpg.runs.__file__).parent.glob("*.py"):
        if path.name in ("files.py", "shipped.py"):  # the latter reads what came with the package
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                offences += [alias.name for alias in node.names if alias.name in ("os", "shutil")]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if not called.startswith(("files.", "resources.files(__package__).")) and DISK & {
                    called,
                    called.split(".")[-1],
                }:
                    offences.append(f"{path.name}:{node.lineno} {called}")
    assert offences == []
