"""A run's folder: `runs/<env>/<agent>/<seed>[-k]/`, and where everything in it is.

recipe.toml       all that it was told, resolved
versions.json     what it ran with
progress.jsonl, monitor.csv, evaluations*.npz, events.out.tfevents.*     the curves
checkpoints/      what it continues from
policy/, best_policy/     what it found: the last and the best
run.lock          held by the process that writes
error.log         the traceback of the last error that stopped it, if one did
"""

from __future__ import annotations

import errno
import importlib.metadata
import platform
import re
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

from rlpg.errors import FileError, RlpgError, SaveError, TrainingError, UsageError, words
from rlpg.runs import files
from rlpg.runs.recipe import LARGEST_FILE, Recipe, dumps
from rlpg.runs.store import POLICY_FILE
from rlpg.runs.toml import tables
from rlpg.runs.trees import to_json

LOCK, VERSIONS = "run.lock", "versions.json"
Which = Literal["best", "last"]  # of a run's policies
PACKAGES = ("rlpg", "torch", "gymnasium", "numpy", "safetensors", "tensorboard")


class RunFolder:
    """The folder of one run; `create_run` makes one, `open_run` finds one. It was named `path` in
    the directory `here` (None: the present one); an environment may take the process to another.
    """

    def __init__(self, path: Path, here: Path | None = None) -> None:
        self.path, self.place = path, (here or files.here()) / path
        self.recipe, self.checkpoints = self.place / "recipe.toml", self.place / "checkpoints"
        self.policy, self.best_policy = self.place / "policy", self.place / "best_policy"
        self._is_there: Callable[[], bool] | None = None  # whether the folder held is still there

    def save_recipe(self, recipe: Recipe, *, before: Recipe, step: int) -> None:
        """Replace the recipe of a run that is resumed at a step, if its budget is another.

        A learning-rate schedule and the times of evaluations follow from the budget, so this recipe
        alone does not repeat the run: comments at its top tell the budgets before.
        """
        text = files.read(self.recipe, limit=LARGEST_FILE).decode()
        comments = [line for line in text.splitlines() if line.startswith("# ")]
        if before.total_steps != recipe.total_steps:
            comments.append(
                f"# trained to step {step} with total_steps = {before.total_steps}, then resumed "
                f"with total_steps = {recipe.total_steps}: repeat both to repeat the run"
            )
        new = "".join(f"{line}\n" for line in comments) + dumps(recipe)
        if new != text:
            files.write(self.recipe, new.encode())

    def to_resume(self) -> str:
        """The command that goes on with the run."""
        told = tables(files.read(self.recipe, limit=LARGEST_FILE).decode())
        env = told.get("environment", {}).get("id", "")
        parts = {"agent": told.get("agent")} | told.get("policy", {}) | told.get("learner", {})
        return (
            f"rlpg resume {shlex.quote(str(self.path))}{named_env(env)}{to_import(*parts.values())}"
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only process that writes to the run; first remove what killed ones left.

        What stops the run says where the run is; the traceback of a fault goes to `error.log`.

        Raises:
            UsageError: another process holds it; the message has its process id.
            FileError: one of its folders is a link or something else.
            TrainingError: any other error than ours, once the run has begun.
        """
        with files.lock(self.place / LOCK) as self._is_there:
            for folder in (self.checkpoints, self.policy, self.best_policy):
                if files.exists(folder) and not files.is_folder(folder):
                    raise FileError(  # what is removed and written there may be somebody's
                        f"{folder}: expected a folder of the run, got a link or a file"
                    )
            for folder in (self.place, self.checkpoints, self.policy, self.best_policy):
                files.remove_temporaries(folder)
            try:
                yield
            except (UsageError, FileError, SaveError):
                raise
            except (KeyboardInterrupt, SystemExit) as stop:
                stop.add_note(f"`{self.to_resume()}` goes on")
                raise
            except Exception as error:
                fault = error
                if not isinstance(error, RlpgError):
                    fault = TrainingError(words(error))
                fault.add_note(self.keep_error(traceback.format_exc()))
                if fault is error:
                    raise
                raise fault from error

    def check(self) -> None:
        """OSError where the folder that is held was removed, moved or replaced."""
        if self._is_there is None or not self._is_there():
            raise OSError(errno.ENOENT, "the run's folder was removed, moved or replaced")

    def keep_error(self, text: str) -> str:
        """Write the error log; one line on where it is."""
        with suppress(OSError):
            files.write(self.place / "error.log", text.encode(errors="backslashreplace"))
        return f"what was saved until then is in {self.path}, see error.log there"

    def last_words(self, message: str, stack: str) -> str:
        """`keep_error` for a process that is about to end in a call that hangs."""
        return self.keep_error(f"Traceback (most recent call last):\n{stack}{message}\n")


def named_env(env_id: str) -> str:
    """What a command that reads a run has to add: a file may not choose a module to import."""
    return f" --env {shlex.quote(env_id)}" if ":" in env_id else ""


def to_import(*parts: object) -> str:
    """What a command that reads a run has to add where one of these names a part of the user's."""
    return " --import" if any(isinstance(part, str) and ":" in part for part in parts) else ""


def create_run(
    recipe: Recipe,
    versions: Mapping[str, str],
    *,
    path: Path | None = None,
    here: Path | None = None,
) -> RunFolder:
    """Make the folder of a new run, with its recipe and versions.

    What a process left that was killed while it made a run here counts as nothing.

    Args:
        path: this very folder, which may exist if it is empty; None: `runs/<env>/<agent>/<seed>`,
            or where there is one `<seed>-1`, `<seed>-2` ...
        here: see `RunFolder`.

    UsageError where `path` is taken; after an OSError no run has appeared.
    """
    here = here or files.here()
    contents = {VERSIONS: to_json(dict(versions)), "recipe.toml": dumps(recipe).encode()}
    if path is not None:
        if not _is_made(here / path, contents):
            got = "one in use; choose another or `rlpg resume` it"
            got = got if files.is_folder(here / path) else "a file or a link; choose another"
            raise UsageError(f"{path}: expected a folder that is new or empty, got {got}")
        return RunFolder(path, here)
    parent = Path("runs") / safe_name(recipe.environment.id) / recipe.agent
    names = (f"{recipe.seed}-{k}" if k else f"{recipe.seed}" for k in count())
    numbered = (parent / name for name in names)
    return RunFolder(next(path for path in numbered if _is_made(here / path, contents)), here)


def _is_made(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Whether the folder was free, and is a run's now; the last of the contents makes it one."""
    if not _is_free(folder):
        return False
    try:
        files.make_folder(folder)
    except OSError as error:
        raise FileError(
            f"{folder}: expected a folder that can be made, got {error.strerror}; choose another"
        ) from None
    try:
        with files.lock(folder / LOCK):
            if not _is_free(folder):  # another process was faster
                return False
            for name, data in contents.items():
                files.write(folder / name, data)
            return True
    except UsageError:  # another process makes a run there
        return False


def _is_free(folder: Path) -> bool:
    ours = (LOCK, VERSIONS)
    left = (e.name for e in files.entries(folder) if not e.name.startswith(files.TEMPORARY))
    return not files.exists(folder) or (files.is_folder(folder) and all(n in ours for n in left))


def open_run(path: Path) -> RunFolder:
    """The run in a folder. FileError if there is none."""
    run = RunFolder(path)
    if not files.exists(run.recipe):
        raise FileError(f"{path}: expected a run's folder with recipe.toml, got none")
    return run


def find_policy(path: Path, which: Which = "best") -> Path:
    """The file of a policy: `path` itself, the one in that folder, or `which` of the run in it (the
    other one where it is missing); FileError where there is none."""
    order = [path / "policy", path / "best_policy"]
    own = filter(files.is_folder, order if which == "last" else order[::-1])
    for folder in (path, *own):
        if files.exists(folder / POLICY_FILE):
            return folder / POLICY_FILE
    if files.is_folder(path):
        raise FileError(f"{path}: expected a run or a policy ({POLICY_FILE}), got neither")
    return path


def safe_name(env_id: str) -> str:
    """An environment id as one harmless folder name: `rlpg/Chain-v0` becomes `rlpg-Chain-v0`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", env_id).lstrip(".-")[:100] or "environment"


def versions(also: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What results depend on besides the recipe; `also` adds what only torch knows."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }
    return found | _installed() | {key: str(value) for key, value in (also or {}).items()}


@cache  # each one is read from the whole description of a package
def _installed() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
