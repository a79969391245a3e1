"""Parts that users bring (a network, a policy, a learner), and how files name them.

A file holds `module:Name` and keyword arguments as data. Reading a file imports nothing: a part is
the object that the caller passes, or is imported where the caller says `import_modules=True`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlpg.errors import MissingPartError, UsageError

Part = str | Callable[..., Any]
"""`"module:Name"`, a class or function, or a `functools.partial` of one with keyword arguments."""


ARGUMENTS = "(...)"  # after the name of an object, which the name alone does not make again


@dataclass(frozen=True)
class Reference:
    """What a file says about a part: its name and its keyword arguments."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UserParts:
    """The parts a caller brings, by kind.

    Attributes:
        network: `network(num_features, num_outputs)` makes the module of policy and critic.
        policy: `policy(observation_space, action_space)` makes the policy.
        agent: a subclass of `rlpg.Learner`.
        baseline: an `rlpg.Baseline`, or what makes one.
        schedules: functions of progress, by setting; see `Learner`.
        import_modules: whether parts that are only named may be imported.
    """

    network: Part | None = None
    policy: Part | None = None
    agent: Part | None = None
    baseline: Any = None
    schedules: Mapping[str, str | Callable[[float], float]] = field(default_factory=dict)
    import_modules: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, Mapping):
            raise UsageError(
                "schedules: expected functions by setting, {'learning_rate': function}, got "
                f"{self.schedules!r:.60}"
            )

    def find(self, kind: str, reference: Reference) -> Callable[..., Any]:
        """The part of that kind: the caller's own object, else what the name imports.

        Raises:
            MissingPartError: it was only named, and nothing may be imported.
        """
        return self._found(getattr(self, kind), kind, f"{kind}=", reference)

    def find_schedule(self, setting: str, name: str) -> Callable[[float], float]:
        """`find` for the function that is the schedule of a setting (`learning_rate`).

        A class makes one: a file names an object by its class.
        """
        how, given = f'schedules={{"{setting}": function}}', self.schedules.get(setting)
        found = self._found(given, f"{setting}_schedule", how, Reference(name))
        return found() if isinstance(found, type) else found

    def _found(
        self, given: Part | None, kind: str, how: str, reference: Reference
    ) -> Callable[..., Any]:
        if given is None and reference.name.endswith(ARGUMENTS):
            raise MissingPartError(
                f"{kind}: expected the object {reference.name} to be given, because its arguments "
                f"are in no file; pass {how}"
            )
        if given is None and not self.import_modules:
            raise MissingPartError(
                f"{kind}: expected {reference.name} to be given, because reading a file imports "
                f"nothing; pass {how}, or import_modules=True; on the command line, --import"
            )
        part = reference.name if given is None else given
        if isinstance(part, str):
            part = imported(part, kind)
        if isinstance(part, functools.partial):
            return part
        return functools.partial(part, **reference.kwargs) if reference.kwargs else part


NO_PARTS = UserParts()


def require_used(given: Mapping[str, Any], recorded: Mapping[str, Any], source: object) -> None:
    """Raises UsageError for a part of the caller's, by kind, where `source`, a file, records none
    of the user's own that it could stand for: a name of rlpg's, or None."""
    for kind, part in given.items():
        has = recorded.get(kind)
        if part is not None and part != has and ":" not in (has or ""):
            raise UsageError(
                f"{source}: {kind}: expected {has or 'none'}, as is written there, got "
                f"{part!r:.80}; leave it out"
            )


def reference_to(part: Part, kind: str) -> Reference:
    """How files name the part.

    Raises:
        UsageError: a name without a module, or arguments that are not keywords, or not data.
    """
    kwargs: Mapping[str, Any] = {}
    if isinstance(part, str):
        module, _, name = part.partition(":")
        if not module or not name:
            raise UsageError(f"{kind}: expected module:Name, got {part!r:.80}")
        return Reference(part)
    if isinstance(part, functools.partial):
        if part.args:
            raise UsageError(f"{kind}: expected keyword arguments in the partial, got {part.args}")
        kwargs = {key: _data(value, f"{kind}: {key}") for key, value in part.keywords.items()}
        part = part.func
    if not callable(part):
        raise UsageError(f"{kind}: expected a class, a function or module:Name, got {part!r:.80}")
    return Reference(name_of(part), kwargs)


def name_of(part: Any) -> str:
    """`module:Name` of a class or function; `module:Name(...)` of an object made with arguments.

    A function's own class or a lambda cannot be imported again, but it can be passed again.
    """
    if isinstance(part, functools.partial):
        return name_of(part.func).removesuffix(ARGUMENTS) + ARGUMENTS
    named = part if hasattr(part, "__qualname__") else type(part)
    name = named.__qualname__.rpartition("<locals>.")[2].replace("<lambda>", "function")
    is_bound = inspect.ismethod(part) and not isinstance(part.__self__, type)
    is_made = named is not part and bool(inspect.signature(named).parameters)
    return f"{part.__module__}:{name}{ARGUMENTS if is_bound or is_made else ''}"


def _data(value: Any, name: str) -> Any:
    """The value as JSON has it, with lists for tuples."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_data(entry, name) for entry in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _data(entry, name) for key, entry in value.items()}
    raise UsageError(
        f"{name}: expected an argument as data (a number, a string, true, false, none, or lists "
        f"and tables of them), because files keep it, got {value!r:.60}"
    )


def imported(name: str, kind: str) -> Callable[..., Any]:
    """The object that `module:Name` names; UsageError if there is none."""
    module, _, path = reference_to(name, kind).name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        text, last = " ".join(f"{error}".split()), traceback.extract_tb(error.__traceback__)[-1]
        is_inside = last.filename != __file__ and not last.filename.startswith("<frozen ")
        place = f" ({last.filename}, line {last.lineno})" if is_inside else ""
        raise UsageError(
            f"{kind}: expected {name} to be importable, got {type(error).__name__}: {text}{place}"
        ) from error
    if not callable(found):
        raise UsageError(f"{kind}: expected {name} to be a class or function, got {found!r:.80}")
    return found  # type: ignore[no-any-return]  # whatever the module holds
