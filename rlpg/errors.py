"""Every error that rlpg raises on purpose.

    RlpgError
    ├── UsageError              what the user typed or passed cannot be used (exit code 2)
    │   ├── RecipeError         an unknown or ill-typed field of a recipe
    │   ├── EnvironmentSetupError   an environment that is unknown or cannot be built
    │   ├── MissingPartError    a file names a part of the user's own, which was not given
    │   └── SpaceError          an observation or action space that is unsupported or does not fit
    ├── EstimatorError          a gradient that was asked for cannot be right (exit code 1)
    │   └── InconclusiveError   gradcheck cannot tell: the noise is as large as the bias it seeks
    ├── FileError               a file that is missing, damaged or not ours (exit code 2)
    └── TrainingError           a run that had to stop (exit code 1)
        ├── EnvironmentFault    the environment raised, died, hung or returned nonsense
        ├── NumericalFault      a loss, gradient, parameter or action stopped being finite
        ├── SaveError           a run that is done, but not everything of it could be saved
        └── SeedsError          of several runs, some failed; the others are done

    RlpgWarning (a UserWarning)     what a run that prints nothing would have printed as a warning

`except rlpg.RlpgError` catches every error of the tree.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

R = TypeVar("R")


class RlpgError(Exception):
    """The root: `except RlpgError` catches everything rlpg raises on purpose."""


class UsageError(RlpgError):
    """What was asked for cannot be done; the message says what can."""


class RecipeError(UsageError):
    """A recipe field that does not exist or a value of the wrong type or range."""


class EnvironmentSetupError(UsageError):
    """An environment that does not exist, lacks a package, or cannot be built."""


class MissingPartError(UsageError):
    """A part of the user's own (network, policy, learner) that a file names and nobody passed."""


class SpaceError(UsageError):
    """A space that is not supported or does not fit the policy."""


class EstimatorError(RlpgError):
    """A gradient estimator applied where its assumptions do not hold."""


class InconclusiveError(EstimatorError):
    """Too much noise to say whether a gradient is right."""


class FileError(RlpgError):
    """A file that is missing, damaged, or not what it claims to be."""


class TrainingError(RlpgError):
    """A run that had to stop; what was saved before stays valid."""


class EnvironmentFault(TrainingError):
    """The environment raised, died, hung, or returned something that cannot be learned from."""


class NumericalFault(TrainingError):
    """A loss, gradient, parameter or action that is not finite; raised before an optimizer step."""


class SaveError(TrainingError):
    """Not everything of a run could be saved; raised when all else was done.

    Attributes:
        run: what `train` or `resume` would have returned, policy and evaluation included; None
            where the run was stopped by a signal.
    """

    def __init__(self, message: str, run: Any = None) -> None:
        super().__init__(message)
        self.run = run


class SeedsError(TrainingError):
    """Some of several runs failed; the others went on to their end.

    Attributes:
        runs: what `train` would have returned, by seed, of those that are done.
        errors: what `train` would have raised, by seed, of the others.
    """

    def __init__(
        self,
        message: str,
        runs: Mapping[int, Any] | None = None,
        errors: Mapping[int, RlpgError] | None = None,
    ) -> None:
        super().__init__(message)
        self.runs, self.errors = dict(runs or {}), dict(errors or {})


class RlpgWarning(UserWarning):
    """Something that the user of a run should know; the run goes on."""


def tell_warnings(say: Callable[[str], object]) -> None:
    """From now on `say` is told an `RlpgWarning`, without the place in the code; others are shown
    as usual."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, RlpgWarning):
            say(str(message))
        else:
            usual(message, category, *where)

    warnings.showwarning = show  # type: ignore[assignment]  # `where` is what it passes on


def call(what: str, function: Callable[..., R], *arguments: Any) -> R:
    """What a function of the user's returns; TrainingError that names it where it raises."""
    try:
        return function(*arguments)
    except RlpgError:
        raise
    except Exception as error:
        raise TrainingError(f"{what} raised {words(error)}") from error


@contextmanager
def too_late_to_refuse() -> Iterator[None]:
    """A run has begun: a part of the user's that refuses something stops it, as a TrainingError."""
    try:
        yield
    except UsageError as error:
        raise TrainingError(str(error)) from error


def words(error: BaseException) -> str:
    """`ValueError: what it says`, in one line; of rlpg's own errors only what they say, and where
    one that says nothing was raised."""
    text, name = " ".join(str(error).split()), type(error).__name__
    if isinstance(error, RlpgError):
        return text
    if text or not (frames := traceback.extract_tb(error.__traceback__)):
        return f"{name}: {text}"
    return f"{name} ({frames[-1].filename}, line {frames[-1].lineno})"


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def readable(name: str) -> str:
    """The name as text; bytes in it that are none (of another encoding) are escaped."""
    return name.encode(errors="backslashreplace").decode()


def decimals(value: float, places: int = 2) -> str:
    """A few decimals; three digits of a number that would have one or none left."""
    is_small = 0 < abs(value) < 10 ** (1 - places)
    return f"{value:.3g}" if is_small else f"{value:.{places}f}"


def install(extra: str) -> str:
    """How a missing extra is installed: no package index has rlpg, a checkout of it does."""
    return f'`pip install ".[{extra}]"` in the checkout of rlpg'
