"""The command line, read from the types of its verbs; nothing heavy is imported before its use.

A new verb is a class under `Verb` and a line in `VERBS`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from rlpg.cli import streams
from rlpg.engine.imports import lasting_imports
from rlpg.errors import FileError, RlpgError, UsageError, tell_warnings

if TYPE_CHECKING:
    from rlpg.cli.verb import Verb

VERBS = {
    "train": "rlpg.cli.train:Train",
    "resume": "rlpg.cli.train:Resume",
    "sweep": "rlpg.cli.train:Sweep",
    "evaluate": "rlpg.cli.policies:Evaluate",
    "watch": "rlpg.cli.policies:Watch",
    "plot": "rlpg.cli.looking:Plot",
    "export": "rlpg.cli.policies:Export",
    "export-dataset": "rlpg.cli.policies:ExportDataset",
    "card": "rlpg.cli.policies:Card",
    "diagnose": "rlpg.cli.looking:Diagnose",
    "check-env": "rlpg.cli.looking:CheckEnv",
    "agents": "rlpg.cli.policies:Agents",
    "completion": "rlpg.cli.completion:Completion",
}

OVERVIEW = """\
usage: rlpg [-h] [--version] VERB ...

Policy-gradient agents on any Gymnasium environment.

verbs:
{verbs}

`rlpg VERB --help` shows what a verb takes; `rlpg train ENV --agent AGENT --help` the settings that
would be used there.

example: rlpg train CartPole-v1 && tensorboard --logdir runs"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 the run failed, 2 it was asked wrongly."""
    if "" not in sys.path:
        sys.path.append("")  # module:Id-v0 finds the modules of the folder one works in
    streams.prepare_streams()
    tell_warnings(streams.say)
    try:
        is_program = argv is None
        code = run(list(sys.argv[1:] if argv is None else argv), is_program=is_program)
        sys.stdout.flush()  # a full disk is told here, not by the interpreter as it exits
        return code
    except (UsageError, FileError) as error:
        return streams.complain(error, streams.EXIT_USAGE)
    except RlpgError as error:
        return streams.complain(error, streams.EXIT_FAILED)
    except BrokenPipeError:  # of a reader like `head`, who has seen enough
        streams.silence_broken_output()
        return 0
    except OSError as error:
        streams.silence_broken_output()
        place = f"{error.filename}: " if error.filename else ""
        told = UsageError(f"{place}{error.strerror}; choose another place")
        return streams.complain(told, streams.EXIT_USAGE)
    except KeyboardInterrupt as stop:
        stop.args = ("interrupted",)
        return streams.complain(stop, streams.EXIT_INTERRUPTED)
    except SystemExit as stop:  # of a training that was sent a signal
        if stop.code not in streams.EXIT_ENDED:
            raise
        stop.args = (f"ended by {streams.EXIT_ENDED[stop.code]}",)
        return streams.complain(stop, stop.code)


def run(words: list[str], *, is_program: bool = False) -> int:
    """What `main` does, with errors as exceptions."""
    first = words[0] if words else ""
    if first in ("-h", "--help"):
        print(OVERVIEW.format(verbs="\n".join(map(_line, VERBS))))
        return 0
    if first == "--version":
        import rlpg

        print(f"rlpg {rlpg.__version__}")
        return 0
    if first not in VERBS:
        raise UsageError(_unknown(first))
    with lasting_imports() if is_program else nullcontext():
        from rlpg.cli.parsing import parse

        verb = parse(first, verb_class(first), words[1:])
        if verb is not None and verb.work:
            importlib.import_module(verb.work)
    return 0 if verb is None else verb.run()


def verb_class(name: str) -> type[Verb]:
    found: type[Verb] = pkgutil.resolve_name(VERBS[name])
    return found


def _line(name: str) -> str:
    """A verb and the first line of its docstring."""
    text = (verb_class(name).__doc__ or "").partition("\n")[0].rstrip(".")
    return f"    {name:14} {text[0].lower()}{text[1:]}"


def _unknown(word: str) -> str:
    if not word:
        return f"expected a verb, one of {', '.join(VERBS)}; `rlpg --help` says what they do"
    close = difflib.get_close_matches(word, VERBS, n=1)
    hint = f"did you mean {close[0]}?" if close else "`rlpg --help` says what they do"
    return f"{word}: expected a verb, one of {', '.join(VERBS)}; {hint}"
