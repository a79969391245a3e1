"""Break one line of the library at a time, and see whether the tests notice.

    python scripts/mutants.py                     # all of them: half an hour
    python scripts/mutants.py --only returns      # those with the word in their name or file
    python scripts/mutants.py --list

Each mutant is one line of `mutants.toml`, written by hand: a mistake that somebody could make. It
is put into a copy of the tree, never into the tree itself, and the tests that should notice it are
run there.

    killed             a test failed, or hung
    survived           they all passed: a test is missing
    does not apply     the text is not in the file once; correct the list
    no such test       pytest found nothing to run; correct the list

The exit code is 1 where fewer than 95 % are killed, or one could not be tried.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "scripts" / "mutants.toml"
LEAST_SHARE = 0.95
LONGEST = 240.0  # seconds of a selection; longer counts as hanging
FAILED, NOTHING_TO_RUN = (1, 2), (4, 5)  # exit codes of pytest


class Mutant(NamedTuple):
    """One mistake."""

    name: str
    file: str  # under rlpg/
    old: str  # text that is in the file once
    new: str  # what replaces it
    tests: str  # under tests/, separated by blanks: what pytest is given


def listed() -> list[Mutant]:
    """The mutants of `mutants.toml`."""
    tables = tomllib.loads(LIST.read_text())
    return [
        Mutant(name, file, old, new, *(tests or [table["tests"]]))
        for file, table in tables.items()
        for name, (old, new, *tests) in table.items()
        if name != "tests"
    ]


def copied_tree(folder: Path) -> Path:
    """A copy of the working tree: what git tracks, and what is new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for package in ("envs", "agents"):  # where the installed package has them
        (folder / "rlpg" / package).symlink_to(folder / package)
    return folder


def preload() -> None:
    """Import once what every run of the tests needs, and nothing of rlpg."""
    import gymnasium  # noqa: F401
    import msgspec  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.numpy  # noqa: F401
    import torch

    torch.set_num_threads(1)
    assert not any(name.partition(".")[0] == "rlpg" for name in sys.modules)


def run_tests(tree: Path, selection: Iterable[str], log: Path) -> int | None:
    """pytest's exit code for the tests in the tree, in a forked process; None where it hung."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(tree)
            sys.path.insert(0, str(tree))
            os.environ["PYTHONPATH"] = str(tree)
            import pytest

            options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--tb=short"]
            code = int(pytest.main([*options, *(f"tests/{name}" for name in selection)]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + LONGEST
    done, status = os.waitpid(child, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.05)
        done, status = os.waitpid(child, os.WNOHANG)
    with suppress(ProcessLookupError):  # it, or what it has left running
        os.killpg(child, signal.SIGKILL)
    if not done:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def tried(mutant: Mutant, tree: Path, log: Path) -> str:
    """What became of the mutant; the tree is as it was afterwards."""
    path = tree / "rlpg" / mutant.file
    text = path.read_text() if path.is_file() else ""
    if text.count(mutant.old) != 1 or mutant.old == mutant.new:
        return "does not apply"
    compiled = Path(cache_from_source(str(path)))  # may be as old as the file, to the second
    path.write_text(text.replace(mutant.old, mutant.new))
    compiled.unlink(missing_ok=True)
    try:
        code = run_tests(tree, mutant.tests.split(), log)
    finally:
        path.write_text(text)
        compiled.unlink(missing_ok=True)
    if code in NOTHING_TO_RUN:
        return "no such test"
    return "survived" if code == 0 else "killed"


def unbroken(mutants: Iterable[Mutant], tree: Path, log: Path) -> bool:
    """Whether the tests pass without any mutant: else nothing is said by their failing."""
    selection = dict.fromkeys(name for mutant in mutants for name in mutant.tests.split())
    whole = {name for name in selection if "::" not in name}
    names = [name for name in selection if name in whole or name.partition("::")[0] not in whole]
    code = run_tests(tree, names, log)
    if code != 0:
        print(f"the tests fail without any mutant (exit code {code}):\n{log.read_text()[-3000:]}")
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="a part of the names or files of mutants")
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    parser.add_argument("--unchecked", action="store_true", help="do not run the unbroken tree")
    options = parser.parse_args()
    mutants = [m for m in listed() if options.only in m.name or options.only in m.file]
    if options.list:
        for mutant in mutants:
            print(f"{mutant.file}: {mutant.name}: `{mutant.old}` -> `{mutant.new}`")
        print(f"{len(mutants)} mutants")
        return 0
    if not mutants:
        parser.error(f"no mutant has {options.only!r} in its name or file")
    preload()
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree, log = copied_tree(Path(folder, "tree")), Path(folder, "log")
        if not options.unchecked and not unbroken(mutants, tree, log):
            return 1
        for mutant in mutants:
            began = time.monotonic()
            result = tried(mutant, tree, log)
            results[result] += 1
            seconds = time.monotonic() - began
            print(f"{result:>14}  {seconds:4.0f} s  {mutant.file}: {mutant.name}", flush=True)
    killed = results["killed"]
    print(", ".join(f"{count} {result}" for result, count in results.most_common()))
    were_tried = killed + results["survived"]
    return int(killed < LEAST_SHARE * were_tried or were_tried < len(mutants))


if __name__ == "__main__":
    sys.exit(main())
