"""Damage files at random and load them: refused in one way, or exactly what they were.

    python scripts/fuzz.py --minutes 10
    python scripts/fuzz.py --seed 123456 --count 1      # one again, as its failure printed it

Each mutation has a seed of its own. A policy or checkpoint in a damaged file must be refused with
a FileError that names the file, or load to the original content. One that is *forged*, its digest
being right, must be refused in the same way or load, as must a recipe, which has no hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rlpg
from rlpg.engine.components import make_learner, make_policy
from rlpg.engine.loading import load_saved
from rlpg.engine.metrics import MetricsAccumulator
from rlpg.engine.restore import fitting, restore, restore_tensors
from rlpg.errors import FileError
from rlpg.rollouts import Collector, make_envs
from rlpg.runs.recipe import Recipe, dumps, load_recipe, override
from rlpg.runs.store import CHECKPOINT, POLICY, load_checkpoint, newest_checkpoint
from rlpg.runs.trees import pack, sealed, unpack

Files = dict[str, bytes]
SETTINGS = {
    "rollout.num_envs": 2,
    "rollout.num_steps": 16,
    "policy.hidden": (4,),
    "evaluation.episodes": 1,
    "evaluation.final_episodes": 1,
    "evaluation.num_envs": 1,
    "checkpoint.every": 32,
}
JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    "",
    "os:system",
    "../..",
    [],
    {},
    [[]],
    {"$": 1},
]


# ---- damage: nobody has mended the hashes ------------------------------------------------------


def flip_a_bit(files: Files, name: str, dice: random.Random, other: Files) -> None:
    data = bytearray(files[name])
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    files[name] = bytes(data)


def change_some_bytes(files: Files, name: str, dice: random.Random, other: Files) -> None:
    data = bytearray(files[name])
    at, length = dice.randrange(len(data)), dice.randint(1, 32)
    data[at : at + length] = dice.randbytes(length)
    files[name] = bytes(data)


def cut_the_end(files: Files, name: str, dice: random.Random, other: Files) -> None:
    files[name] = files[name][: dice.randrange(len(files[name]))]


def zero_a_block(files: Files, name: str, dice: random.Random, other: Files) -> None:
    data, at = files[name], dice.randrange(len(files[name]))
    size = min(dice.choice([16, 512, 4096]), len(data) - at)
    files[name] = data[:at] + bytes(size) + data[at + size :]


def repeat_a_block(files: Files, name: str, dice: random.Random, other: Files) -> None:
    data, at = files[name], dice.randrange(len(files[name]))
    files[name] = data[: at + dice.randint(1, 64)] + data[at:]


def remove_a_block(files: Files, name: str, dice: random.Random, other: Files) -> None:
    data, at = files[name], dice.randrange(len(files[name]))
    files[name] = data[:at] + data[at + dice.randint(1, 64) :]


def lose_a_file(files: Files, name: str, dice: random.Random, other: Files) -> None:
    del files[name]


def go_on_as_another(files: Files, name: str, dice: random.Random, other: Files) -> None:
    at = dice.randrange(len(files[name]))
    files[name] = files[name][:at] + other[name][at:]


def duplicate_a_file(files: Files, name: str, dice: random.Random, other: Files) -> None:
    """Under another's name, or under one that nobody knows."""
    files[dice.choice([*sorted(files), f"{name}.1", "copy", f".tmp-{name}-new-1"])] = files[name]


def take_a_file_of_another(files: Files, name: str, dice: random.Random, other: Files) -> None:
    files[name] = other[name]


Mutation = Callable[[Files, str, random.Random, Files], None]
DAMAGE: list[Mutation] = [
    flip_a_bit, change_some_bytes, cut_the_end, zero_a_block, repeat_a_block, remove_a_block,
    lose_a_file, go_on_as_another, duplicate_a_file, take_a_file_of_another,
]  # fmt: skip


# ---- arrays that do not fit, with the hashes mended --------------------------------------------


def put_nan_in_weights(arrays: dict[str, Any], name: str, dice: random.Random) -> None:
    array = arrays[name] = np.array(arrays[name])
    if array.dtype.kind == "f" and array.size:
        array.reshape(-1)[dice.randrange(array.size)] = dice.choice([np.nan, np.inf, -np.inf])
    else:
        arrays[name] = np.full(array.shape, np.nan, np.float32)


def change_a_shape(arrays: dict[str, Any], name: str, dice: random.Random) -> None:
    array = arrays[name]
    shapes = [(1, *array.shape), (*array.shape, 1), (*array.shape, 2), (array.size + 1,)]
    if array.ndim:
        shapes += [array.shape[:-1], (array.shape[0] + 1, *array.shape[1:])]
    arrays[name] = np.resize(array, dice.choice(shapes))


def change_a_dtype(arrays: dict[str, Any], name: str, dice: random.Random) -> None:
    kinds = ["?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
    arrays[name] = arrays[name].astype(dice.choice([k for k in kinds if arrays[name].dtype != k]))


def lose_an_array(arrays: dict[str, Any], name: str, dice: random.Random) -> None:
    del arrays[name]


def rename_an_array(arrays: dict[str, Any], name: str, dice: random.Random) -> None:
    arrays[name + dice.choice(["x", "/", "\0", ".weight"])] = arrays.pop(name)


def duplicate_an_array(arrays: dict[str, Any], name: str, dice: random.Random) -> None:
    arrays[f"{name}.copy"] = arrays[name]


ARRAY_MUTATIONS = [
    put_nan_in_weights, change_a_shape, change_a_dtype, lose_an_array, rename_an_array,
    duplicate_an_array,
]  # fmt: skip


def forge_an_entry(tree: Any, dice: random.Random) -> None:
    """Some value anywhere in JSON becomes another, disappears, or gets company."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(tree)
    if not places:
        return
    node, key = dice.choice(places)
    match dice.randrange(4):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[dice.choice(["__class__", "$array", "$tuple", "more"])] = dice.choice(JUNK)
        case 2:
            other, place = dice.choice(places)
            try:
                node[key] = json.loads(json.dumps(other[place]))
            except (LookupError, TypeError):
                node[key] = dice.choice(JUNK)
        case _:
            node[key] = dice.choice(JUNK)


# ---- what is damaged ---------------------------------------------------------------------------


class Subject:
    """Something on disk, how it is loaded, and what it holds as it was."""

    def __init__(self, folder: Path, other: Path) -> None:
        self.name = folder.name
        self.files = contents(folder)
        self.other = contents(other)

    def load(self, folder: Path) -> Any:
        """A fingerprint of what was loaded; FileError where it is refused."""
        raise NotImplementedError

    def forged(self, dice: random.Random) -> tuple[str, Files, bool]:
        """How, the files, and whether they may load to something else than the original."""
        raise NotImplementedError

    def mutated(self, dice: random.Random) -> tuple[str, Files, bool]:
        """`forged`, or damaged."""
        if dice.random() < 0.4:
            return self.forged(dice)
        files, mutation = dict(self.files), dice.choice(DAMAGE)
        name = dice.choice(sorted(files))
        mutation(files, name, dice, self.other)
        is_another = files.get(name) == self.other.get(name)
        return mutation.__name__, files, self.has_no_hashes or is_another

    has_no_hashes = False


class SavedPolicy(Subject):
    def load(self, folder: Path) -> Any:
        saved = load_saved(folder)
        weights = {name: tensor.numpy() for name, tensor in saved.policy.state_dict().items()}
        return fingerprint([saved.policy.describe(), saved.environment, saved.training, weights])

    def forged(self, dice: random.Random) -> tuple[str, Files, bool]:
        return forged_file(self.files, POLICY, dice, "weights")


class SavedCheckpoint(Subject):
    """Loaded into the parts of its run, as `rlpg resume` does."""

    def __init__(self, folder: Path, other: Path, recipe: Recipe) -> None:
        super().__init__(folder, other)
        self.recipe = recipe

    def load(self, folder: Path) -> Any:
        saved = load_checkpoint(folder / next(iter(self.files)))
        envs = make_envs("CartPole-v1", self.recipe.rollout.num_envs, seed=0).envs
        learner = make_learner(make_policy(envs, self.recipe), self.recipe)
        collector = Collector(envs, learner.policy, 0, log_prob=False)
        accumulator = MetricsAccumulator(collector)
        with fitting(saved.path):
            restore_tensors(learner, saved.state["learner"], "learner")
            restore(collector, saved.state["collector"], "collector")
            restore(accumulator, saved.state["metrics"], "metrics")
        return fingerprint(saved.state)

    def forged(self, dice: random.Random) -> tuple[str, Files, bool]:
        return forged_file(self.files, CHECKPOINT, dice, "state/learner")


def forged_file(
    files: Files, kind: str, dice: random.Random, strict: str
) -> tuple[str, Files, bool]:
    """One array or value of the only file is changed; the digest is right.

    Args:
        strict: arrays under this path must be refused where they are changed; but for the running
            returns of a reward scale, of whose number the learner knows nothing.
    """
    ((name, data),) = files.items()
    mutation = dice.choice([None, *ARRAY_MUTATIONS])
    if mutation is None:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        content = json.loads(header["__metadata__"]["rlpg"])
        forge_an_entry(content, dice)
        content["sha256"] = "0" * 64
        header["__metadata__"]["rlpg"] = json.dumps(content)
        text = json.dumps(header).encode()
        whole = sealed(bytearray(len(text).to_bytes(8, "little") + text + data[8 + length :]))
        return "forge_an_entry", {name: bytes(whole)}, True
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        tree = unpack(Path(file.name), kind, len(data))
    places = [place for place in arrays_in(tree, "") if place[0].startswith("/" + strict)]
    if mutation is not put_nan_in_weights:
        places = list(arrays_in(tree, ""))
    path, table, key = dice.choice(places)
    mutation(table, key, dice)
    is_free = not path.startswith("/" + strict) or path.endswith("/running")
    return mutation.__name__, {name: bytes(pack(kind, 1 << 24, tree))}, is_free


def arrays_in(tree: Any, path: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Path, table and key of each array that stands in a table."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if isinstance(value, np.ndarray):
                yield f"{path}/{key}", tree, key
            yield from arrays_in(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for place, value in enumerate(tree):
            yield from arrays_in(value, f"{path}/{place}")


class SavedRecipe(Subject):
    has_no_hashes = True

    def load(self, folder: Path) -> Any:
        return dumps(load_recipe(folder / "recipe.toml"))

    def forged(self, dice: random.Random) -> tuple[str, Files, bool]:
        lines = self.files["recipe.toml"].decode().splitlines()
        for _ in range(dice.randint(1, 4)):
            line = dice.choice(lines)
            piece = dice.choice(
                ["= ", ".", "[", "]", '"', "'''", "{", "}", "#", "\n", "nan", "9" * 50]
            )
            at = dice.randrange(len(line) + 1)
            lines.insert(dice.randrange(len(lines) + 1), line[:at] + piece + line[at:])
        return "forge_lines", {"recipe.toml": "\n".join(lines).encode()}, True


def contents(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fingerprint(tree: Any) -> Any:
    """The tree with arrays as text, so that `==` compares bits."""
    if isinstance(tree, dict):
        return {key: fingerprint(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [fingerprint(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return f"{tree.dtype} {tree.shape} {hashlib.sha256(tree.tobytes()).hexdigest()}"
    return repr(tree)


def make_subjects(home: Path) -> list[Subject]:
    """Two short runs, and what they saved; the second is there to be confused with the first."""
    runs = [
        rlpg.train("CartPole-v1", seed=seed, total_steps=96, run_dir=home / f"run-{seed}",
                   recipe="default", overrides=SETTINGS).path
        for seed in (1, 2)
    ]  # fmt: skip
    recipe = load_recipe(runs[0] / "recipe.toml")
    places = []
    for number, run in enumerate(runs):
        saved, _ = newest_checkpoint(run / "checkpoints")
        assert saved is not None
        (home / f"recipes-{number}").mkdir()
        kwargs = {"environment.kwargs": {"a": [1.5, "x"], "b": True}, "seed": number}
        text = dumps(override(recipe, kwargs))
        (home / f"recipes-{number}" / "recipe.toml").write_text(text)
        (home / f"checkpoints-{number}").mkdir()
        shutil.copy(saved.path, home / f"checkpoints-{number}")
        places.append((run / "policy", home / f"checkpoints-{number}", home / f"recipes-{number}"))
    (policy, state, settings), others = places[0], places[1]
    return [
        SavedPolicy(policy, others[0]),
        SavedCheckpoint(state, others[1], recipe),
        SavedRecipe(settings, others[2]),
    ]


class Fuzzer:
    """Mutates the subjects in turn, in a folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.subjects = make_subjects(home)
        self.originals = []
        for subject in self.subjects:
            self.originals.append(subject.load(self.write(subject, subject.files)))

    def write(self, subject: Subject, files: Files) -> Path:
        """The files in the folder that the subject is loaded from."""
        folder = self.home / "mutated" / subject.name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if files.get(path.name) is None:
                path.unlink()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder

    def once(self, seed: int) -> tuple[str, str, str]:
        """One mutation.

        Returns:
            what was mutated, how, and what came of it: `refused`, `original`, `another` where that
            is allowed, or what is wrong.
        """
        dice = random.Random(seed)
        number = dice.randrange(len(self.subjects))
        subject = self.subjects[number]
        how, files, may_differ = subject.mutated(dice)
        kind = type(subject).__name__
        folder = self.write(subject, files)
        try:
            loaded = subject.load(folder)
        except FileError as error:
            path, _, reason = str(error).partition(": ")
            named = path.startswith(str(folder)) and reason and "\n" not in str(error)
            return kind, how, "refused" if named else f"no file and reason in one line: {error}"
        except Exception as error:
            return kind, how, f"{type(error).__name__}: {error}"
        if loaded == self.originals[number]:
            return kind, how, "original"
        return kind, how, "another" if may_differ else "loaded something else"


OUTCOMES = ("refused", "original", "another")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long (10)")
    parser.add_argument("--count", type=int, help="this many mutations instead")
    parser.add_argument("--seed", type=int, help="of the first mutation (the time)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # a file that is refused leaves no warning behind
    first = int(time.time()) << 20 if arguments.seed is None else arguments.seed
    home = Path(tempfile.mkdtemp(prefix="rlpg-fuzz-"))
    counts: Counter[tuple[str, str]] = Counter()
    failures = done = 0
    began = time.monotonic()
    try:
        fuzzer = Fuzzer(home)
        print(f"mutations from seed {first} on", flush=True)
        while (
            done < arguments.count
            if arguments.count is not None
            else time.monotonic() < began + 60 * arguments.minutes
        ):
            kind, how, outcome = fuzzer.once(first + done)
            if outcome not in OUTCOMES:
                failures += 1
                if failures <= 20:
                    print(f"--seed {first + done}: {kind}, {how}: {outcome}"[:500], flush=True)
            counts[kind, outcome if outcome in OUTCOMES else "WRONG"] += 1
            done += 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print("| | " + " | ".join((*OUTCOMES, "wrong")) + " |\n|---|---:|---:|---:|---:|")
    for kind in sorted({kind for kind, _ in counts}):
        row = [counts[kind, outcome] for outcome in (*OUTCOMES, "WRONG")]
        print(f"| {kind} | " + " | ".join(map(str, row)) + " |")
    print(f"{done} mutations in {(time.monotonic() - began) / 60:.1f} minutes, {failures} wrong")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
