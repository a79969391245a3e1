"""All settings of a run, as frozen dataclasses and as TOML; the only place with defaults.

A recipe is checked when it is made, whatever it is made from: Python, TOML (`loads`,
`load_recipe`), or dotted keys with typed values or command-line text (`override`). What does not
fit is a RecipeError of one line. The type of the learner's table is the agent's.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from msgspec import Meta

from rlpg.errors import FileError, RecipeError
from rlpg.learners.rules import num_steps
from rlpg.learners.settings import (
    AGENTS,
    LearnerSettings,
    ReinforceSettings,
    agents_with,
    moot,
)
from rlpg.runs import files, toml
from rlpg.runs.tables import (
    CheckpointSettings,
    EnvironmentSettings,
    EvaluationSettings,
    LogSettings,
    PolicySettings,
    RolloutSettings,
)
from rlpg.settings import Count, Natural, Settings, from_text, kinds, one_of, validated

LARGEST_FILE = 1 << 20  # bytes; a recipe is a page of text
_WORDS = tomllib.loads(resources.files(__package__).joinpath("synonyms.toml").read_text("utf-8"))
# What other libraries call our settings: word -> dotted key.
SYNONYMS: dict[str, str] = {word: key for key, words in _WORDS.items() for word in words.split()}

AgentName = Annotated[str, one_of(*AGENTS, or_own="Class")]
Device = Literal["cpu", "cuda", "auto"]
Resolve = Callable[[str], type[LearnerSettings]]


@dataclass(frozen=True)
class Recipe(Settings):
    """All settings of a run. Together with the versions they determine its bits."""

    agent: AgentName = "reinforce"
    """the learner"""
    total_steps: Count = 300_000
    """environment steps to train for"""
    seed: Natural = 0
    """seed of every random stream of the run"""
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """CPU threads for the networks; more help large ones, where nothing else runs"""
    device: Device = "cpu"
    """where the networks are: cpu, which is fastest for small ones, or a GPU (auto: a GPU if there
    is one)"""
    compile: bool = False
    """compile the networks for learning (torch.compile; half a minute at the start)"""
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    learner: LearnerSettings = field(default_factory=ReinforceSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def check(self) -> None:
        own, has = AGENTS.get(self.agent), type(self.learner)
        if own is not None and has is not own.settings:
            raise RecipeError(
                f"learner: expected {own.settings.__name__} for the agent {self.agent}, got "
                f"{has.__name__}; Recipe.of({self.agent!r}) has the defaults of that agent"
            )

    @property
    def steps_per_env(self) -> int:
        """`rollout.num_steps`, or what its rule says."""
        told = self.rollout
        if told.num_steps == "auto":
            has_memory = self.policy.memory is not None
            return num_steps(self.total_steps, told.num_envs, has_memory=has_memory)
        return told.num_steps

    @classmethod
    def of(cls, agent: str, settings: type[LearnerSettings] | None = None) -> Recipe:
        """The defaults of an agent.

        Args:
            agent: its name, or `module:Class`.
            settings: what a learner of one's own can be told: `Class.Settings`.
        """
        agent = validated("agent", agent, kinds(cls)["agent"])
        if agent in AGENTS:
            entry = AGENTS[agent]
            return _with(cls(agent=agent, learner=entry.settings()), entry.defaults)
        return cls(agent=agent, learner=(settings or LearnerSettings)())


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted key: `{"agent": ..., "rollout.num_envs": 16, ...}`."""
    flat: dict[str, Any] = {}
    for name, value in recipe.values().items():
        if isinstance(value, Settings):
            flat |= {value.key(inner): entry for inner, entry in value.values().items()}
        else:
            flat[name] = value
    return flat


def override(
    recipe: Recipe, changes: Mapping[str, object], settings: type[LearnerSettings] | None = None
) -> Recipe:
    """The recipe with `{"rollout.num_envs": 16}` applied, all at once.

    Text is read as typed on a command line (`"1e6"`, `"none"`, `"64,64"`); one entry of a table
    is set by its own key (`"environment.kwargs.is_slippery": "false"`). With another `agent`, the
    defaults are that agent's, and what the recipe said otherwise than its own defaults is kept.
    What means nothing beside the changes is as by default: `gae_lambda` without a baseline that
    predicts values, and the value network's own settings with a shared torso.

    Args:
        settings: what a learner of one's own, new in `changes`, can be told.

    Raises:
        RecipeError: an unknown key ("did you mean"), a wrong type, or a value out of range.
    """
    agent = changes.get("agent", recipe.agent)
    if agent != recipe.agent:
        base = Recipe.of(agent, settings)  # type: ignore[arg-type]  # it judges the value
        said = diff(recipe, Recipe.of(recipe.agent, type(recipe.learner)))
        recipe = _with(base, {key: mine for key, mine in said.items() if key != "agent"})
    typed = {
        key: from_text(value, kind_of(recipe, key)) if isinstance(value, str) else value
        for key, value in changes.items()
        if key != "agent"
    }
    return _with(recipe, _moot(recipe, typed) | typed)


def _moot(recipe: Recipe, changes: Mapping[str, object]) -> dict[str, object]:
    """The defaults of settings that mean nothing beside the changes, and would be refused."""
    before = recipe.learner.baseline, recipe.policy.shared_torso
    baseline = changes.get("learner.baseline", before[0])
    shared_torso = changes.get("policy.shared_torso", before[1])
    new = moot(str(baseline), shared_torso=shared_torso is True)
    if not (new := new - moot(before[0], shared_torso=before[1])):
        return {}
    plain = Recipe.of(recipe.agent, type(recipe.learner)).learner.values()
    return {f"learner.{name}": plain[name] for name in new & plain.keys()}


def _with(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """`override` for typed values; the dataclasses themselves check them."""
    top: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        kind = kind_of(recipe, key)
        table, name, entry = (*key.split(".", 2), "", "")[:3]
        if not name:
            top[table] = validated(key, value, kind)
            continue
        values = tables.setdefault(table, {})
        if entry:
            before = values.get(name, getattr(getattr(recipe, table), name))
            value = before | {entry: validated(key, value, kind)}
        values[name] = value
    for table, values in tables.items():
        top[table] = replace(top.get(table, getattr(recipe, table)), **values)
    return replace(recipe, **top)


def _tables(recipe: Recipe) -> dict[str, Settings]:
    return {name: v for name, v in recipe.values().items() if isinstance(v, Settings)}


def kind_of(recipe: Recipe, key: str) -> Any:
    """The annotation behind a dotted key, or RecipeError with the closest ones."""
    table, name, entry = (*key.split(".", 2), "", "")[:3]
    kind: Any = kinds(Recipe).get(table)
    if "." in key:
        settings = _tables(recipe).get(table)
        is_known = settings is not None and name in settings.names()
        kind = kinds(type(settings))[name] if is_known else None
    if entry:
        kind = get_args(kind)[1] if get_origin(kind) is dict else None
    if kind is None:
        raise RecipeError(f"{key}: {_why_not(recipe, key)}")
    return kind


def _why_not(recipe: Recipe, key: str) -> str:
    """What is wrong with a key that names no setting, and what may be meant."""
    table, _, name = key.partition(".")
    if table == "learner" and (others := agents_with(name)):
        verb = "have" if len(others) > 1 else "has"
        return f"no setting of the agent {recipe.agent}; {' and '.join(others)} {verb} it"
    hints = did_you_mean(recipe, key)
    known = {**flatten(recipe), **_tables(recipe)}
    for k, hint in enumerate(hints):
        if hint not in known:
            agents = " and ".join(agents_with(hint.partition(".")[2]))
            hints[k] = f"{hint} (of the agent {agents})"
    if hints:
        return f"no such setting; did you mean {' or '.join(hints)}?"
    return f"no such setting; the sections are {', '.join(_tables(recipe))}"


def did_you_mean(recipe: Recipe, key: str) -> list[str]:
    """At most three settings, and for a key without a dot sections, closest to one that is none."""
    last = key.rpartition(".")[2].lower().replace("-", "_")
    known = [*flatten(recipe), *([] if "." in key else _tables(recipe))]
    close = [k for k in known if k.rpartition(".")[2] == last]
    close += [SYNONYMS[last]] if last in SYNONYMS else []
    if close:
        return close[:3]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.7)
    by_last = {k.rpartition(".")[2]: k for k in known} | SYNONYMS
    close += [by_last[k] for k in difflib.get_close_matches(last, list(by_last), n=3, cutoff=0.7)]
    return list(dict.fromkeys(close))[:3]


def loads(
    text: str, source: str = "recipe", *, agent: str | None = None, resolve: Resolve | None = None
) -> Recipe:
    """The recipe in TOML text; settings it does not name keep the agent's defaults.

    Args:
        agent: replaces the agent that the text names.
        resolve: the settings of a learner of one's own, `module:Class`. None: there is none.

    Raises:
        RecipeError: names the source and the dotted key.
    """
    try:
        flat: dict[str, object] = {}
        for name, value in toml.tables(text).items():
            if isinstance(value, dict) and name in _tables(Recipe()):
                flat |= {f"{name}.{key}": entry for key, entry in value.items()}
            else:
                flat[name] = value
        named = flat.pop("agent", "reinforce")
        return _with(_defaults(agent or named, resolve), flat)
    except (ValueError, RecipeError, RecursionError) as error:
        raise RecipeError(f"{source}: {error}") from None


def _defaults(agent: Any, resolve: Resolve | None) -> Recipe:
    defaults = Recipe.of(agent)
    if agent in AGENTS:
        return defaults
    if resolve is None:
        raise RecipeError(
            f"agent: a file may not choose to import {agent}; give it yourself, or allow --import"
        )
    return Recipe.of(agent, resolve(agent))


def dumps(recipe: Recipe) -> str:
    """The whole recipe as TOML; `loads` gives an equal one. None is written `"none"`."""
    tables = {name: table.values() for name, table in _tables(recipe).items()}
    return toml.text(recipe.values() | tables)


def load_recipe(
    path: str | Path, *, agent: str | None = None, resolve: Resolve | None = None
) -> Recipe:
    """`loads` a TOML file; FileError where it cannot be read, or what it says does not fit."""
    data = files.read(Path(path), limit=LARGEST_FILE)
    try:
        return loads(data.decode("utf-8-sig"), source=str(path), agent=agent, resolve=resolve)
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected UTF-8 text, got {error.reason}") from None
    except RecipeError as error:
        raise FileError(str(error)) from None


def diff(recipe: Recipe, other: Recipe) -> dict[str, Any]:
    """What the first says otherwise than the other: `{"learner.learning_rate": 0.003}`."""
    theirs = flatten(other)
    return {key: mine for key, mine in flatten(recipe).items() if mine != theirs.get(key)}
