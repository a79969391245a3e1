"""Everything a run can be told, as frozen dataclasses <-> TOML; the only place with defaults.

A recipe is checked when it is made, whatever it is made from: Python, TOML (`loads`,
`load_recipe`), or dotted keys with typed values or command-line text (`override`). What does not
fit is a RecipeError of one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

from rlpg.errors import FileError, RecipeError
from rlpg.runs import files
from rlpg.runs.fields import MisfitError, Within, accept, expected, from_text, tables, toml

LARGEST_FILE = 1 << 20  # bytes; a recipe is a page of text
DISCRETE_ENTROPY_COEF = 0.02  # where learner.entropy_coef is none
OTHER_WORDS = {"lr": "learning_rate", "n_steps": "num_steps", "ent_coef": "entropy_coef"}

Count = Annotated[int, Within(1)]
Natural = Annotated[int, Within(0)]
Finite = Annotated[float, Within()]
Positive = Annotated[float, Within(0, open_low=True)]
NonNegative = Annotated[float, Within(0)]
Fraction = Annotated[float, Within(0, 1)]
Scalar = bool | int | float | str


def _kinds(settings: type) -> dict[str, Any]:
    return get_type_hints(settings, include_extras=True)


class Settings:
    """A table that checks itself: every field fits its annotation, or RecipeError names it."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Settings").lower()
        prefix = "" if section == "recipe" else f"{section}."
        for name, kind in _kinds(type(self)).items():
            value = getattr(self, name)
            object.__setattr__(self, name, _fit(prefix + name, value, kind))


def _is_table(kind: Any) -> TypeGuard[type[Settings]]:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _fit(key: str, value: object, kind: Any) -> Any:
    if _is_table(kind):
        if isinstance(value, kind):
            return value
        raise RecipeError(f"{key}: expected a table, got {value!r:.80}")
    try:
        return accept(value, kind)
    except MisfitError:
        raise RecipeError(f"{key}: expected {expected(kind)}, got {value!r:.80}") from None


@dataclass(frozen=True)
class EnvironmentSettings(Settings):
    """Which environment, and how it is built."""

    id: str = ""
    """a Gymnasium id: CartPole-v1, or module:Id-v0"""
    kwargs: dict[str, list[Scalar] | bool | int | float | str] = field(default_factory=dict)
    """keyword arguments for the environment"""
    backend: Literal["auto", "native", "sync", "async", "envpool"] = "auto"
    """how the copies run: vectorized by the environment, in this process, in worker processes"""
    max_episode_steps: Count | None = None
    """time limit in steps (none: the environment's own)"""
    episode_cap: Count = 1000
    """time limit for environments that have none of their own"""
    timeout: Positive = 60.0
    """seconds a step or reset may take before the environment counts as hanging"""


@dataclass(frozen=True)
class PolicySettings(Settings):
    """From observation to action distribution."""

    hidden: tuple[Count, ...] = (64, 64)
    """units of each hidden layer"""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """nonlinearity between the layers"""
    normalize_observations: bool = True
    """subtract the running mean of observations and divide by their standard deviation"""
    observation_clip: Positive = 10.0
    """bound of a normalized observation, in standard deviations"""
    gaussian: Literal["clipped", "squashed", "beta"] = "clipped"
    """continuous actions: a Gaussian clipped for the environment, a tanh-Gaussian, or a Beta"""
    std: Literal["independent", "dependent"] = "independent"
    """whether the Gaussian's width depends on the observation"""
    log_std_init: Finite = 0.0
    """log of the Gaussian's first standard deviation"""
    log_std_floor: Finite = -5.0
    """the log standard deviation never falls below this"""
    bernoulli: bool = False
    """two discrete actions: one Bernoulli logit instead of two categorical ones"""
    action_mask: bool = True
    """use the environment's action mask where it gives one"""
    images: bool | Literal["auto"] = "auto"
    """whether uint8 arrays of rank 2 or 3 are images, for a CNN (auto: from 36 x 36 on)"""


@dataclass(frozen=True)
class RolloutSettings(Settings):
    """How much experience one update sees."""

    num_envs: Count = 16
    """copies of the environment"""
    num_steps: Count = 32
    """steps per environment and update"""
    episodes_per_env: Count | None = None
    """whole episodes per environment and update, instead of steps"""


@dataclass(frozen=True)
class LearnerSettings(Settings):
    """From experience to a better policy."""

    baseline: Literal["none", "moving_average", "time_step", "leave_one_out", "linear", "value"] = (
        "value"
    )
    """what is subtracted from the return"""
    gamma: Fraction = 0.99
    """discount per step"""
    gae_lambda: Fraction | None = 0.95
    """GAE's weight of longer returns, for baselines that predict values: linear, value
    (none: the whole return minus the baseline)"""
    truncated_return: Literal["bootstrap", "drop", "terminal"] | None = None
    """a cut-off episode: add the value of its last state, drop it, or count it as ended (none:
    bootstrap if the baseline predicts values; else collect whole episodes and count it as ended)"""
    gamma_weight: bool = False
    """weigh step t by gamma^t, as the gradient of the discounted objective does"""
    average: Literal["steps", "episodes"] = "steps"
    """the gradient is a mean over steps, or over episodes"""
    entropy_coef: NonNegative | None = None
    """weight of the entropy bonus (none: 0.02 for discrete actions; 0 for continuous ones, whose
    entropy grows without bound)"""
    normalize_advantages: bool = True
    """shift and scale the advantages of a batch to mean 0 and standard deviation 1"""
    max_grad_norm: Positive | None = 0.5
    """longer gradients are shortened to this norm (none: never)"""
    learning_rate: Positive = 5e-3
    """learning rate of the policy"""
    learning_rate_schedule: Literal["constant", "linear"] = "linear"
    """keep the learning rates, or lower them linearly to 0 over the run"""
    value_learning_rate: Positive = 3e-3
    """learning rate of the value network"""
    num_value_epochs: Count = 2
    """passes of the value network over a rollout"""
    num_value_minibatches: Count = 2
    """pieces a rollout is cut into for the value network"""
    reward_scaling: bool = True
    """the learner sees rewards divided by the running standard deviation of the return"""


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """How the policy is measured, on environments of its own."""

    every: Count | None = None
    """environment steps between evaluations (none: a twentieth of total_steps)"""
    episodes: Count = 10
    """episodes per evaluation"""
    num_envs: Count = 10
    """copies of the environment"""
    final_episodes: Count = 100
    """episodes of the evaluation after training"""
    stochastic: bool = True
    """evaluate with sampled actions too, besides the most likely ones"""


@dataclass(frozen=True)
class CheckpointSettings(Settings):
    """What a run can be continued from."""

    every: Count | None = None
    """environment steps between checkpoints (none: as often as evaluations)"""
    keep_last: Count = 3
    """older checkpoints are removed; one made at the best evaluation is kept"""


@dataclass(frozen=True)
class LogSettings(Settings):
    """The curves."""

    every: Count | None = None
    """environment steps between log entries (none: a 500th of total_steps)"""
    tensorboard: bool = True
    """write TensorBoard events, besides progress.jsonl"""


@dataclass(frozen=True)
class Recipe(Settings):
    """Everything that, with the versions, determines a run."""

    agent: Literal["reinforce"] = "reinforce"
    """the learner"""
    total_steps: Count = 300_000
    """environment steps to train for"""
    seed: Natural = 0
    """seed of every random stream of the run"""
    threads: Count = 1
    """CPU threads for the networks; more help large ones, where nothing else runs"""
    compile: bool = False
    """compile the networks for learning (torch.compile; half a minute at the start)"""
    environment: EnvironmentSettings = EnvironmentSettings()
    policy: PolicySettings = PolicySettings()
    rollout: RolloutSettings = RolloutSettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its dotted key: `{"agent": ..., "rollout.num_envs": 16, ...}`."""
    flat: dict[str, Any] = {}
    for entry in fields(recipe):
        value = getattr(recipe, entry.name)
        if is_dataclass(value):
            flat |= {f"{entry.name}.{f.name}": getattr(value, f.name) for f in fields(value)}
        else:
            flat[entry.name] = value
    return flat


def override(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with `{"rollout.num_envs": 16}` applied, all at once.

    Text is read as typed on a command line (`"1e6"`, `"none"`, `"64,64"`); one entry of a table
    is set by its own key (`"environment.kwargs.is_slippery": "false"`).

    Raises:
        RecipeError: an unknown key ("did you mean"), a wrong type, or a value out of range.
    """
    typed = {
        key: from_text(value, _kind(key)) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    return _with(recipe, typed)


def _with(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """`override` for typed values; the dataclasses themselves check them."""
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        kind = _kind(key)
        section, name, entry = (*key.split(".", 2), "", "")[:3]
        if not name:
            top[section] = _fit(key, value, kind)
            continue
        settings = sections.setdefault(section, {})
        if entry:
            table = settings.get(name, getattr(getattr(recipe, section), name))
            value = table | {entry: _fit(key, value, kind)}
        settings[name] = value
    for section, settings in sections.items():
        top[section] = replace(top.get(section, getattr(recipe, section)), **settings)
    return replace(recipe, **top)


def _kind(key: str) -> Any:
    """The annotation behind a dotted key, or RecipeError with the closest ones."""
    section, name, entry = (*key.split(".", 2), "", "")[:3]
    kind = _kinds(Recipe).get(section)
    if "." in key:
        kind = _kinds(kind).get(name) if _is_table(kind) else None
    if entry:
        kind = get_args(kind)[1] if get_origin(kind) is dict else None
    if kind is None:
        raise RecipeError(f"{key}: no such setting; {_did_you_mean(key)}")
    return kind


def _did_you_mean(key: str) -> str:
    sections = [name for name, kind in _kinds(Recipe).items() if _is_table(kind)]
    known = list(flatten(Recipe())) + sections
    last = key.rpartition(".")[2]
    close = [k for k in known if k.rpartition(".")[2] == OTHER_WORDS.get(last, last)]
    close += difflib.get_close_matches(key, known, n=3, cutoff=0.7)
    by_last = {k.rpartition(".")[2]: k for k in known}
    close += [by_last[k] for k in difflib.get_close_matches(last, list(by_last), n=3, cutoff=0.7)]
    if close:
        is_setting = "." in key  # then a section is no answer
        keys = [k for k in dict.fromkeys(close) if not (is_setting and k in sections)]
        return "did you mean " + " or ".join(keys[:3] or sections) + "?"
    return "the sections are " + ", ".join(sections)


def loads(text: str, source: str = "recipe") -> Recipe:
    """The recipe in TOML text; settings it does not name keep their defaults.

    Raises:
        RecipeError: names the source and the dotted key.
    """
    try:
        flat: dict[str, object] = {}
        for name, value in tables(text).items():
            if isinstance(value, dict) and _is_table(_kinds(Recipe).get(name)):
                flat |= {f"{name}.{key}": entry for key, entry in value.items()}
            else:
                flat[name] = value
        return _with(Recipe(), flat)
    except (ValueError, RecipeError, RecursionError) as error:
        raise RecipeError(f"{source}: {error}") from None


def dumps(recipe: Recipe) -> str:
    """The whole recipe as TOML; `loads` gives an equal one. None is written `"none"`."""
    return toml(asdict(recipe))


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        FileError: the file cannot be read, or what it says does not fit.
    """
    data = files.read(Path(path), limit=LARGEST_FILE)
    try:
        return loads(data.decode(), source=str(path))
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected UTF-8 text, got {error.reason}") from None
    except RecipeError as error:
        raise FileError(str(error)) from None


def save(recipe: Recipe, path: str | Path) -> None:
    """Write `dumps(recipe)` to a file, atomically."""
    files.write(Path(path), dumps(recipe).encode())


def diff(recipe: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings in which the two differ: `{"learner.learning_rate": (0.003, 0.001)}`."""
    theirs = flatten(other)
    return {
        key: (mine, theirs[key]) for key, mine in flatten(recipe).items() if mine != theirs[key]
    }
