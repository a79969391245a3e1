"""Commands in several processes that are joined as by torchrun; a program, for `test_torchrun.py`.

Importing torch takes seconds, a small training takes less. So one process imports everything and
trains nothing; each rank of a command is a child that it forks, which has the variables that
torchrun sets and calls the command line's `main`. Nothing has used torch before a fork.

It reads a line of JSON for each command, the number of ranks, the working folder and the words, and
answers with one: the exit codes, and what was printed on each stream.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch.distributed

import rlpg.verbs.several  # noqa: F401 (what a training imports)
from rlpg.cli import main


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(rank: int, ranks: int, port: int, words: Sequence[str], folder: Path) -> int:
    """The process of one rank."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        for number in (1, 2):
            file = os.open(folder / f"{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
        for name, value in {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }.items():  # fmt: skip
            os.environ[name] = str(value)
        code = main(words)
    finally:
        os._exit(code)


def run(ranks: int, place: str, words: Sequence[str]) -> dict[str, object]:
    os.chdir(place)
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        started = [start(rank, ranks, port, words, Path(name)) for rank in range(ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
        out, errors = ((Path(name) / number).read_text() for number in ("1", "2"))
    return {"codes": codes, "out": out, "errors": errors}


if __name__ == "__main__":
    assert torch.distributed.is_available()
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
