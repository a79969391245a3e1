"""What all verbs of the command line share: their parsers, and how wrong words are refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from rlpg.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UsageErrors: one line, exit code 2, with the closest choice."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` shows what there is")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Long option names get a line of their own."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)
        self._action_max_length = 13  # argparse forgets that the verbs are indented twice


class Version(argparse.Action):
    """Prints the version."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "nargs": 0, "help": "print the version"})

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import rlpg

        print(f"rlpg {rlpg.__version__}")
        parser.exit()


def add_verb(
    verbs: Any, command: Callable[[argparse.Namespace, list[str]], int], **texts: str
) -> argparse.ArgumentParser:
    """The parser of a verb that is called what its command is called."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        command.__name__.replace("_", "-"),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        **texts,
    )
    parser.set_defaults(command=command)
    return parser


def refuse(rest: list[str], verb: str) -> None:
    """UsageError if there are words that no option of the verb took."""
    if rest:
        raise UsageError(f"{rest[0]}: no such option; see `rlpg {verb} --help`")
