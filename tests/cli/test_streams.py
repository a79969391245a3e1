"""What a command prints comes in one line, whatever is in it."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rlpg.cli.streams import complain, prepare_streams, report, say
from rlpg.errors import FileError, RlpgWarning, tell_warnings


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_a_stream_cannot_encode_is_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file name that is not UTF-8 has lone surrogates; the line with it was never printed."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    prepare_streams()
    assert complain(FileError("no file x\udcff\n of\tyours"), 2) == 2
    report("saved in x\udcff")
    print("\u2212 0.5")  # `evaluate` ended in a traceback where ± could not be encoded
    told = {}
    for name, stream in streams.items():
        stream.flush()
        told[name] = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert told["stderr"] == b"rlpg: no file x\\udcff of yours\n"
    minus = "\u2212".encode(encoding, "backslashreplace")
    assert told["stdout"] == b"saved in x\\udcff\n" + minus + b" 0.5\n"


def test_two_ranks_that_complain_at_once_do_not_write_into_each_others_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun starts them with unbuffered streams, which pass on every piece as it comes."""
    pieces: list[str] = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "write", pieces.append)
    say("two\nlines")
    assert pieces == ["rlpg: two lines\n"]


def test_a_warning_about_a_run_is_one_line_and_others_are_as_usual(
    capsys: pytest.CaptureFixture[str],
) -> None:
    others: list[object] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: others.append(message)
        tell_warnings(say)
        warnings.warn("the disk\nis full", RlpgWarning, stacklevel=1)
        warnings.warn("another one", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "rlpg: the disk is full\n"
    assert [str(message) for message in others] == ["another one"]


def test_a_quiet_command_says_what_is_missing_and_fails(tmp_path: Path) -> None:
    """Exit code 0, and nothing said, where `policy` could not be written."""
    program = (
        "import os, sys, errno\n"
        "from rlpg.runs import files\n"
        "from rlpg.cli import main\n"
        "class Full:\n"
        "    def __getattr__(self, name): return getattr(os, name)\n"
        "    def rename(self, source, target):\n"
        "        if '/policy/' in str(target): raise OSError(errno.ENOSPC, 'No space left')\n"
        "        os.rename(source, target)\n"
        "files.os = Full()\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["train", "CartPole-v1", "--total-steps=600", "--quiet", f"--run-dir={tmp_path}/run"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"rlpg: {tmp_path}/run/policy: cannot be written now")
    assert lines[1].startswith(f"rlpg: {tmp_path}/run: expected everything to be saved, missing: ")
    assert "policy (No space left)" in lines[1]


def test_a_process_without_descriptors_says_one_line(tmp_path: Path) -> None:
    """Each worker that could not be used any more printed a traceback of 34 lines."""
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); "
    program += "from rlpg.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["train", "CartPole-v1", "--environment.backend=async", f"--run-dir={tmp_path}/run"]
    words += ["--environment.num-workers=16", "--total-steps=600", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Too many open files" in done.stderr
