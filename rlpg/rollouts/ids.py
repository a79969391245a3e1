"""What environments are called: finding an id, and saying what is wrong in one line."""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import PurePath
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, parse_env_id, registry
from gymnasium.vector import VectorEnv

from rlpg.errors import EnvironmentSetupError, RlpgError, install, words
from rlpg.rollouts.records import record_of

AnyEnv = gymnasium.Env[Any, Any]
Factory = Callable[..., AnyEnv]  # an environment's class, or a function that makes one
EnvSource = str | EnvSpec | AnyEnv | VectorEnv[Any, Any, Any] | Factory

_REGISTER = {  # start of ids -> the module that registers them when it is imported
    "ALE/": "ale_py",
    "BabyAI-": "minigrid",
    "MiniGrid-": "minigrid",
    "MinAtar/": "minatar.gym",
}
_INSTALL = {  # word in the import error -> what to type
    "box2d": install("box2d"),
    "mujoco is not": install("mujoco"),
    "'mujoco'": install("mujoco"),
    "ale_py": install("atari"),
    "minatar": install("minatar"),
    "jax": '`pip install "gymnasium[jax]"`',
    "envpool": install("envpool"),
    "pygame": install("video"),
}


def find_spec(env_id: str | EnvSpec) -> tuple[EnvSpec, str]:
    """The registered spec of an id, and a note where the id does not name its latest version.

    A spec is its own.

    Raises:
        EnvironmentSetupError: unknown id (with the closest ones), or its module cannot be
            imported.
    """
    if isinstance(env_id, EnvSpec):
        return env_id, ""
    module, _, name = env_id.rpartition(":")
    if not module and name not in registry:
        module = next((m for start, m in _REGISTER.items() if name.startswith(start)), "")
    if module.endswith(".py"):
        raise EnvironmentSetupError(
            f"env: expected the name of a module before the colon, got the file {module}; write "
            f"{PurePath(module).stem}:{name}, in the folder of that file"
        )
    if module:
        imported = importlib.import_module(module)
        _register(imported, name)
        if name not in registry and callable(getattr(imported, name, None)):
            raise EnvironmentSetupError(
                f"env: expected an id, got {env_id}, which makes environments; let {module} call "
                f'gymnasium.register("{name}-v0", entry_point="{env_id}") and name '
                f"{module}:{name}-v0, or pass {name} itself in Python"
            )
    try:
        namespace, base, version = parse_env_id(name)
    except gymnasium.error.Error:
        wrong = unknown_id(name, list(registry), "an id like Name-v0")
        raise EnvironmentSetupError(wrong) from None
    versions = sorted(
        (spec for spec in registry.values() if (spec.namespace, spec.name) == (namespace, base)),
        key=lambda spec: spec.version or 0,
    )
    spec = registry.get(name)
    if spec is None and version is None and versions:
        return versions[-1], f"the latest version of {name}"
    if spec is None:
        raise EnvironmentSetupError(unknown_id(name, list(registry), "a registered id"))
    latest = versions[-1]
    return spec, "" if latest is spec else f"there is a newer version, {latest.id}"


def _register(module: ModuleType, name: str) -> None:
    """Lets a module that was imported register the id, if it does so in `register_envs()` only.

    That is what plugins of Gymnasium before 1.0 did (MinAtar: `minatar.gym:MinAtar/Breakout-v1`).
    """
    register = getattr(module, "register_envs", None)
    base = name.partition("-v")[0]
    if callable(register) and not any(known.startswith(base) for known in registry):
        register()


def environment_name(env: EnvSource) -> str:
    """The whole id of an environment; the class, or what makes it, where there is none.

    An object that the id alone does not make again has a name that is no id: `Class(id)`.

    Raises:
        EnvironmentSetupError: it is nothing that makes environments.
    """
    if isinstance(env, str):
        return full_id(env)
    if isinstance(env, gymnasium.Env | VectorEnv) and env.spec is None:
        return type(env.unwrapped).__name__
    if isinstance(env, gymnasium.Env | VectorEnv | EnvSpec):
        spec: Any = env if isinstance(env, EnvSpec) else env.spec
        env_id = str(spec.id)
        return env_id if record_of(env) else f"{type(env).__name__}({env_id})"
    if callable(env) and not (isinstance(env, type) and not issubclass(env, gymnasium.Env)):
        made_by: Any = env
        while isinstance(made_by, partial):
            made_by = made_by.func
        name = getattr(made_by, "__name__", type(made_by).__name__)
        return name if name.isidentifier() else "environment"  # <lambda>
    raise EnvironmentSetupError(
        f"env: expected an id, a class or function that makes a gymnasium.Env, an environment, or "
        f"a vector environment, got {env!r:.60} ({type(env).__name__})"
    )


def package_of(env: EnvSource) -> str:
    """The package that an environment with an id is from; "" where none is known."""
    spec = getattr(env, "spec", env)
    if isinstance(env, str):
        with own_words(env), suppress(EnvironmentSetupError):
            spec = find_spec(env)[0]
    entry: Any = spec.entry_point if isinstance(spec, EnvSpec) else ""
    return str(getattr(entry, "__module__", entry)).partition(":")[0].partition(".")[0]


def full_id(env_id: str) -> str:
    """The id with a version: the latest of `CartPole` is `CartPole-v1`; others as they are."""
    module, colon, name = env_id.rpartition(":")
    with own_words(env_id), suppress(gymnasium.error.Error, EnvironmentSetupError):
        if parse_env_id(name)[2] is None:
            return f"{module}{colon}{find_spec(env_id)[0].id}"
    return env_id


def unknown_id(name: str, known: list[str], expected: str) -> str:
    """One line with the closest known ids."""
    lower = {env_id.lower(): env_id for env_id in known}
    close = [lower[near] for near in difflib.get_close_matches(name.lower(), lower, n=3)]
    advice = f"did you mean {' or '.join(close)}?" if close else "write `module:Id-v0` to import it"
    return f"env: expected {expected}, got {name!r}; {advice}"


def hush() -> None:
    """Keeps Gymnasium's remarks off the terminal."""
    warnings.filterwarnings("ignore", message=r"\x1b\[33mWARN: ")
    # Importing Box2D warns so, and crashes the interpreter where warnings are errors.
    warnings.filterwarnings("ignore", message="builtin type [sS]wig")


@contextmanager
def own_words(env: object) -> Iterator[None]:
    """Says in one line what Gymnasium says in many, and keeps its remarks off the terminal."""
    name = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
    name = env.id if isinstance(env, EnvSpec) else name
    try:
        with warnings.catch_warnings():
            hush()
            yield
    except RlpgError:
        raise
    except (Exception, SystemExit) as error:
        text = words(error)
        advice = "check the environment's arguments"
        if isinstance(error, AttributeError) and "_space'" in text:
            advice = "give it observation_space and action_space"
        if isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
            advice = next(
                (f"run {line}" for word, line in _INSTALL.items() if word in text.lower()),
                "install what it needs, or use a newer version of the environment",
            )
        raise EnvironmentSetupError(
            f"env: expected {name} to start, got {text}; {advice}"
        ) from error


def quietly(make: Callable[..., AnyEnv], /, *arguments: Any, **options: Any) -> AnyEnv:
    """The environment that `make` makes, without MuJoCo's remark about Gymnasium's own models.

    The remark is printed for each environment and looks like an error. What else MuJoCo has to say
    is printed as ever.
    """
    entry = str(getattr(arguments[0], "entry_point", "")) if arguments else ""
    if "mujoco" not in entry:
        return make(*arguments, **options)
    try:
        from mujoco import get_mju_user_warning, set_mju_user_warning
    except ImportError:  # which making says better
        return make(*arguments, **options)
    before = get_mju_user_warning()

    def tell(message: str) -> None:
        if "settotalmass" in message:
            return
        if before is not None:
            before(message)
        else:
            print(f"WARNING: {message}", file=sys.stderr)

    set_mju_user_warning(tell)
    try:
        return make(*arguments, **options)
    finally:
        set_mju_user_warning(before)
