"""Files that somebody else made, with bad intentions: a program, for `test_strangers.py`.

Every case lies in a folder of its own. One process opens them all, one after the other, and prints
what came of each, and how much memory the worst of them took.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

import rlpg
from rlpg.engine.loading import load_saved
from rlpg.runs.curves import Curves
from rlpg.runs.recipe import Recipe, load_recipe, override
from rlpg.runs.run import create_run
from rlpg.runs.store import Checkpoint, load_checkpoint, load_policy, newest_checkpoint
from rlpg.runs.trees import VERSION, sealed, split
from rlpg.verbs.evaluation import evaluate_saved

CANARY = "canary"  # in the working folder; whoever makes it has run code or left its folder
SETTINGS: dict[str, Any] = {
    "agent": "reinforce",
    "rollout.num_envs": 2,
    "rollout.num_steps": 8,
    "policy.hidden": (4,),
    "environment.backend": "sync",
    "evaluation.episodes": 1,
    "evaluation.num_envs": 1,
    "evaluation.final_episodes": 1,
    "checkpoint.every": 16,
}
BILLION = 10**9
ENV_SPEC = {
    "id": "CartPole-v1",
    "entry_point": "os:system",
    "kwargs": {"command": f"touch {CANARY}"},
    "additional_wrappers": [],
    "vector_entry_point": "os:system",
}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def zip_of(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def saved_by(save: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


BOMBS = {
    "a pickle": pickle.dumps(Bomb()),
    "a torch file": saved_by(lambda file: torch.save({"w": Bomb()}, file)),
    "an npy of objects": saved_by(lambda file: np.save(file, np.array([Bomb()]))),
    "an npz of objects": saved_by(lambda file: np.savez(file, w=np.array([Bomb()]))),
    "a zip of paths": zip_of({f"../{CANARY}": b"x", f"{os.getcwd()}/{CANARY}": b"x"}),
    "python": f"import os; os.system('touch {CANARY}')".encode(),
    "yaml": f"!!python/object/apply:os.system ['touch {CANARY}']".encode(),
    "nothing": b"",
}


def tensors(
    entries: dict[str, Any] | str, body: bytes = b"", length: int | None = None
) -> Callable[[str], bytes]:
    """A file of a kind whose digest is right, with such entries in its safetensors header."""

    def made(kind: str) -> bytes:
        raw: Any = entries
        if isinstance(entries, dict):
            content = {"format": kind, "version": VERSION, "sha256": "0" * 64, "tree": TREE[kind]}
            raw = json.dumps({"__metadata__": {"rlpg": json.dumps(content)}, **entries})
        data = (len(raw) if length is None else length).to_bytes(8, "little") + raw.encode() + body
        return bytes(sealed(bytearray(data))) if b"0" * 64 in data else data

    return made


TREE: dict[str, Any] = {
    "rlpg policy": {"description": {}, "weights": {"w": {"$array": "w"}}},
    "rlpg checkpoint": {"step": 64, "versions": {}, "state": {"w": {"$array": "w"}}},
}


def claim(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


CLAIMS = {
    "a header of 2^63 bytes": tensors("{}", length=2**63),
    "a header beyond the end": tensors("{}", length=3),
    "a billion numbers": tensors(claim([BILLION], 4 * BILLION), bytes(8)),
    "a billion numbers in 8 bytes": tensors(claim([BILLION], 8), bytes(8)),
    "a product that overflows": tensors(claim([2**32, 2**32, 4], 0)),
    "a billion dimensions of none": tensors(claim([0, BILLION, BILLION, BILLION], 0)),
    "5000 dimensions": tensors(claim([1] * 5000, 4), bytes(4)),
    "a product that takes an hour": tensors(claim([9] * 1_000_000, 4), bytes(4)),
    "a negative size": tensors(claim([-1, -2], 8), bytes(8)),
    "offsets before the file": tensors({"w": {**claim([2], 8)["w"], "data_offsets": [-8, 0]}}),
    "objects of Python": tensors(claim([1], 8, dtype="O"), bytes(8)),
}
LARGE = 4 << 20  # what a header may have
TEXTS = {
    "deep lists": "[" * 1_000_000,
    "deep tables": '{"a":' * 200_000,
    "many lists": "[" + "[]," * (LARGE // 3 - 9) + "[]]",
    "many tables": '{"a":[' + "{}," * (LARGE // 3 - 9) + "{}]}",
    "many keys": "{" + ",".join(f'"{k:x}":0' for k in range(LARGE // 12)) + "}",
    "a long number": '{"a":' + "9" * 1_000_000 + "}",
    "a key twice": '{"__metadata__": {}, "__metadata__": {}}',
    "not a number": '{"__metadata__": NaN}',
    "too much": " " * (LARGE + 1),
    "an EnvSpec": json.dumps(ENV_SPEC),
}
HEADERS = {f"{name} for the header": tensors(text) for name, text in TEXTS.items()} | {
    f"{name} for the tree": tensors(json.dumps({"__metadata__": {"rlpg": text}}))
    for name, text in TEXTS.items()
}

Case = tuple[Callable[[Path], object], Callable[[Path], object]]  # makes the files, opens them
CASES: dict[str, Case] = {}
HARMLESS: dict[str, Case] = {}  # may be opened, and nothing comes of it


# ----------------------------------------------------------------------------------- policies


def policy_case(name: str, **changes: Any) -> None:
    """A policy that is changed by functions, or whose file is given as bytes."""
    CASES[f"policy: {name}"] = (lambda folder: forge_policy(folder, **changes), open_policy)


def packed(kind: str, whole: object, **top: Any) -> bytes:
    """As `pack` does it, without asking whether it could be read, and with other metadata."""
    plain, arrays = split(whole)
    content = {"format": kind, "version": VERSION, "sha256": "0" * 64, "tree": plain, **top}
    return bytes(sealed(bytearray(safetensors.numpy.save(arrays, {"rlpg": json.dumps(content)}))))


def forge_policy(
    folder: Path,
    *,
    change: Callable[[dict[str, Any]], object] = lambda description: None,
    arrays: Callable[[dict[str, Any]], object] = lambda arrays: None,
    data: bytes | None = None,
    **top: Any,
) -> None:
    """A consistent policy whose digest is right, but for what is asked for."""
    description, weights = load_policy(Path("run/policy"))
    change(description)
    arrays(weights)
    folder.mkdir()
    if data is None:
        data = packed("rlpg policy", {"description": description, "weights": weights}, **top)
    (folder / "policy.safetensors").write_bytes(data)


def open_policy(folder: Path) -> None:
    evaluate_saved(load_saved(folder), episodes=1)


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the entry under these keys."""

    def change(tree: dict[str, Any]) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change


def linked_policy(folder: Path) -> None:
    folder.mkdir()
    target = Path("run/policy/policy.safetensors").absolute()
    (folder / "policy.safetensors").symlink_to(target)


def hole(path: Path, size: int, start: bytes) -> None:
    """A file that is a hole of that size, after its start."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def no_file(path: Path, kind: str) -> None:
    """Something that blocks, never ends or listens in the place of a file of the run."""
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as plug, contextlib.chdir(path.parent):
            plug.bind(path.name)
    elif kind == "a link":
        path.symlink_to(Path("elsewhere").absolute())
    elif kind == "a folder":
        path.mkdir()


NO_FILES = ("a pipe", "a socket", "a folder")


def deep_space(levels: int) -> Any:
    space: Any = {"type": "Discrete", "n": 2, "start": 0, "dtype": "int64"}
    for _ in range(levels):
        space = {"type": "Tuple", "spaces": [space]}
    return space


def all_policies() -> None:
    for name, data in BOMBS.items():
        policy_case(name, data=data)
    for name, make in (CLAIMS | HEADERS).items():
        policy_case(name, data=make("rlpg policy"))
    weight = "network.mlp.layers.0.weight"
    for name in (f"{os.getcwd()}/{CANARY}", f"../../{CANARY}", "nul\0l", "__class__"):
        policy_case(f"weights called {name[-12:]!r}", arrays=put(name, value=np.zeros(3)))
    for name, value in {
        "NaN": np.full((4, 4), np.nan, np.float32),
        "infinite": np.full((4, 4), np.inf, np.float32),
        "of another shape": np.zeros((4, 5), np.float32),
        "of another dtype": np.zeros((4, 4), np.float64),
        "of another kind": np.zeros((4, 4), np.int32),
    }.items():
        policy_case(f"{name} weights", arrays=put(weight, value=value))
    policy_case("no weights", arrays=lambda arrays: arrays.pop(weight))
    for spaces in (
        {"type": "Discrete", "n": BILLION, "start": 0, "dtype": "int64"},
        {"type": "MultiDiscrete", "shape": [1], "dtype": "int64", "nvec": [BILLION], "start": [0]},
        {"type": "MultiBinary", "shape": [BILLION]},
        {"type": "Box", "shape": [BILLION], "dtype": "float32", "low": 0.0, "high": 1.0},
        {"type": "Box", "shape": [1], "dtype": "object", "low": 0.0, "high": 1.0},
        {"type": "os:system"},
        deep_space(25),
    ):
        for where in (("policy", "observations", "space"), ("policy", "action_space")):
            policy_case(f"{where[-1]} {spaces!r:.60}", change=put(*where, value=spaces))
    for layers in ([BILLION], [30_000] * 3, [1] * 100_000, [-1], ["4"], [4.0], 4):
        where = ("policy", "network", "hidden")
        policy_case(f"hidden {layers!r:.20}", change=put(*where, value=layers))
    for activation in ("os.system", "__import__", "tanh; import os", 3):
        where = ("policy", "network", "activation")
        policy_case(f"activation {activation}", change=put(*where, value=activation))
    for env_id in ("os:system", "antigravity:CartPole-v1", f"{CANARY}:X-v0", json.dumps(ENV_SPEC)):
        policy_case(f"environment {env_id:.30}", change=put("environment", "id", value=env_id))
    policy_case(
        "an EnvSpec for the environment's id", change=put("environment", "id", value=ENV_SPEC)
    )
    for version in (0, 1, 99, "2", None, [1] * 50):
        policy_case(f"version {version!r:.10}", version=version)
    CASES["policy: a link"] = (linked_policy, open_policy)
    for size in (300 << 20, 64 << 30):
        for start in (b"", tensors(claim([size // 4], size))("rlpg policy")):

            def make_hole(folder: Path, size: int = size, start: bytes = start) -> None:
                folder.mkdir()
                hole(folder / "policy.safetensors", size + len(start), start)

            name = f"policy: a hole of {size >> 20} MB after {len(start)} bytes"
            CASES[name] = (make_hole, open_policy)
    for kind in NO_FILES:

        def make_none(folder: Path, kind: str = kind) -> None:
            folder.mkdir()
            no_file(folder / "policy.safetensors", kind)

        CASES[f"policy: {kind}"] = (make_none, open_policy)
    HARMLESS["policy: an EnvSpec for the environment"] = (
        lambda folder: forge_policy(
            folder, change=put("environment", value={**ENV_SPEC, "episode_cap": 9})
        ),
        load_saved,
    )


# --------------------------------------------------------------------------------- checkpoints


def newest(run: Path = Path("run")) -> Checkpoint:
    found, _ = newest_checkpoint(run / "checkpoints")
    assert found is not None
    return found


def checkpoint_case(name: str, **changes: Any) -> None:
    """A run whose only checkpoint is forged; it is resumed."""
    CASES[f"checkpoint: {name}"] = (lambda run: forge_checkpoint(run, **changes), open_checkpoint)


def forge_checkpoint(
    run: Path,
    *,
    change: Callable[[dict[str, Any]], object] = lambda state: None,
    data: bytes | None = None,
    **top: Any,
) -> Path:
    """A run with one checkpoint whose digest is right, but for what is asked for."""
    good = newest()
    tree = copy.deepcopy(good.state)
    change(tree)
    shutil.copytree("run", run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    path = run / "checkpoints" / good.path.name
    whole = {"step": good.step, "versions": good.versions, "state": tree}
    path.write_bytes(packed("rlpg checkpoint", whole, **top) if data is None else data)
    return path


def open_checkpoint(run: Path) -> None:
    """What is damaged is skipped in favor of an older one; here there is none, so look at it."""
    load_checkpoint(next((run / "checkpoints").iterdir()))
    rlpg.resume(run, total_steps=400)


def linked_checkpoint(run: Path) -> None:
    path = forge_checkpoint(run)
    moved = path.rename(run / "elsewhere")
    path.symlink_to(moved.absolute())


def linked_folder(name: str) -> Callable[[Path], None]:
    def make(run: Path) -> None:
        shutil.copytree("run", run)
        (run / name).rename(run / "elsewhere")
        (run / name).symlink_to((run / "elsewhere").absolute())
        (run / "elsewhere" / ".tmp-mine").write_text("mine")

    return make


def open_linked(run: Path) -> None:
    try:
        rlpg.resume(run, total_steps=400)
    finally:
        if not (run / "elsewhere" / ".tmp-mine").exists():
            Path(CANARY).touch()  # a file outside of the run was removed


def all_checkpoints() -> None:
    for name, data in BOMBS.items():
        checkpoint_case(name, data=data)
    for name, make in (CLAIMS | HEADERS).items():
        checkpoint_case(name, data=make("rlpg checkpoint"))
    for path in (f"../../{CANARY}", f"{os.getcwd()}/{CANARY}", "/dev/zero"):
        checkpoint_case(f"arrays {path[-9:]}", tree={"a": {"$array": path}})
        evaluations = {path: {"timesteps": np.array([1])}}
        where = ("curves", "evaluations")
        checkpoint_case(f"evaluations {path[-9:]}", change=put(*where, value=evaluations))
    for version in (0, 1, 99, "2", None):
        checkpoint_case(f"version {version!r}", version=version)
    for part in ("learner", "collector", "metrics", "best", "curves"):
        for value in ([], {}, "os:system", 3):
            checkpoint_case(f"{part} {value!r}", change=put(part, value=value))
        checkpoint_case(f"no {part}", change=lambda state, part=part: state.pop(part))
    weight = ("learner", "policy", "network.mlp.layers.0.weight")
    for name, value in {
        "NaN": np.full((4, 4), np.nan, np.float32),
        "of another shape": np.zeros((4, 5), np.float32),
        "of another dtype": np.zeros((4, 4), np.float64),
        "large": np.zeros(60_000_000, np.float32),
    }.items():
        checkpoint_case(f"{name} weights", change=put(*weight, value=value))
    moments = ("learner", "optimizer")
    for value in ([{}], [{}] * 9, [{"exp_avg": np.zeros(7)}] * 4):
        checkpoint_case(f"moments {value!r:.30}", change=put(*moments, value=value))
    for key, value in {
        "obs": np.zeros((1, 4), np.float32),
        "ended": np.zeros(1, bool),
        "returns": np.zeros((2, 2)),
        "lengths": np.zeros(2, np.float16),
        "generator": np.zeros(10, np.uint8),
        "env_steps": 10**30,
        "vector_steps": "1",
    }.items():
        checkpoint_case(f"collector.{key}", change=put("collector", key, value=value))
    for key, value in {
        "progress": -1,
        "monitor": -(2**70),
        "step": 10**30,
        "t_start": float("nan"),
        "evaluations": {"evaluations": {"timesteps": "x", "results": [], "ep_lengths": []}},
    }.items():
        checkpoint_case(f"curves.{key}", change=put("curves", key, value=value))
    checkpoint_case("a best of text", change=put("best", value=("best", "step")))
    for size in (300 << 20, 1 << 30, 64 << 30):
        for start in (b"", tensors(claim([size // 4], size))("rlpg checkpoint")):

            def make_hole(run: Path, size: int = size, start: bytes = start) -> None:
                hole(forge_checkpoint(run), size + len(start), start)

            name = f"checkpoint: a hole of {size >> 20} MB after {len(start)} bytes"
            CASES[name] = (make_hole, open_checkpoint)
    for kind in NO_FILES:

        def make_none(run: Path, kind: str = kind) -> None:
            no_file(forge_checkpoint(run), kind)

        CASES[f"checkpoint: {kind}"] = (make_none, open_checkpoint)
    CASES["run: checkpoints is a link"] = (linked_folder("checkpoints"), open_linked)
    CASES["run: policy is a link"] = (linked_folder("policy"), open_linked)
    CASES["run: best_policy is a link"] = (linked_folder("best_policy"), open_linked)
    CASES["checkpoint: a link"] = (linked_checkpoint, open_checkpoint)


# ------------------------------------------------------------------------------------- recipes


def recipe_case(name: str, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "recipe.toml").write_bytes(data)

    CASES[f"recipe: {name}"] = (make, lambda folder: load_recipe(folder / "recipe.toml"))


def run_case(name: str, changes: dict[str, Any]) -> None:
    """A whole run whose recipe is not what it seems; it is resumed."""

    def make(run: Path) -> None:
        shutil.copytree("run", run)
        text = (run / "recipe.toml").read_text()
        for before, after in changes.items():
            assert before in text
            text = text.replace(before, after)
        (run / "recipe.toml").write_text(text)

    CASES[f"run: {name}"] = (make, rlpg.resume)


def all_recipes() -> None:
    for name, data in BOMBS.items():
        if data:
            recipe_case(name, data)
    for name, text in {
        "deep lists": "x = " + "[" * 100_000,
        "deep tables": "x = " + "{a=" * 100_000,
        "a long key": "a" + ".a" * 400_000 + " = 1",
        "a long quoted key": "'a'" + ".'a'" * 200_000 + " = 1",
        "a long heading": "[a" + ".a" * 400_000 + "]",
        "a long key behind a string": "x = {a = '''b''''', " + "c." * 30_000 + "c = 1}",
        "many keys": "\n".join(f"k{k:x} = 1" for k in range(90_000)),
        "a long number": "seed = " + "9" * 100_000,
        "too much": " " * (1 << 20) + " ",
        "an EnvSpec": "\n".join(
            f"{key} = {json.dumps(ENV_SPEC[key])}" for key in list(ENV_SPEC)[:2]
        ),
        "a nested EnvSpec": "[environment]\nkwargs = {spec = {entry_point = 'os:system'}}",
        "another agent": "agent = '../../canary'",
        "null": "[environment]\nid = 'a\0b'",
        "nan": "[learner]\nlearning_rate = nan",
        "a billion environments": "[rollout]\nnum_envs = 1_000_000_000",
        "a billion steps": "[rollout]\nnum_steps = 1_000_000_000",
        "a large rollout": "[rollout]\nnum_envs = 60_000\nnum_steps = 1_000_000",
        "a billion episodes": "[evaluation]\nfinal_episodes = 1_000_000_000",
        "a million threads": "threads = 1_000_000",
        "a billion units": "[policy]\nhidden = [1_000_000_000]",
        "a large network": "[policy]\nhidden = [60_000, 60_000]",
        "a hundred thousand layers": f"[policy]\nhidden = {[1] * 100_000}",
        "a large memory": "[policy]\nmemory = 'gru'\nmemory_size = 1_000_000_000",
        "an agent to import": "agent = 'os:system'",
    }.items():
        recipe_case(name, text)
    CASES["recipe: a link"] = (
        lambda folder: (
            folder.mkdir(), (folder / "recipe.toml").symlink_to(Path("run/recipe.toml").absolute())
        ),
        lambda folder: load_recipe(folder / "recipe.toml"),
    )  # fmt: skip
    for env_id in ("os:system", "antigravity:CartPole-v1", f"{CANARY}:X-v0"):
        run_case(f"environment {env_id}", {'id = "CartPole-v1"': f'id = "{env_id}"'})
    run_case("another network", {"hidden = [\n    4,": "hidden = [\n    8,"})
    for name in ("recipe.toml", "run.lock"):
        for kind in (*NO_FILES, "a link"):

            def make_none(run: Path, name: str = name, kind: str = kind) -> None:
                shutil.copytree("run", run)
                no_file(run / name, kind)

            CASES[f"run: {kind} for {name}"] = (make_none, rlpg.resume)
    HARMLESS["run: a name with path parts"] = (
        lambda folder: folder.mkdir(),
        lambda folder: create_run(
            override(Recipe(), {"environment.id": f"../../../{CANARY}"}), {}, here=folder
        ),
    )
    HARMLESS["run: a tag with path parts"] = (lambda folder: folder.mkdir(), write_tags)


def write_tags(folder: Path) -> None:
    curves = Curves(folder, env_id=f"../{CANARY}", texts={f"../../{CANARY}": "x"})
    curves.log(1, {f"../{CANARY}": 1.0, f"{os.getcwd()}/{CANARY}": 2.0, "\0": 3.0})
    curves.close()


# ------------------------------------------------------------------------------------ the program


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """MB since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def opened(name: str, case: Case, number: int) -> dict[str, Any]:
    make, use = case
    folder = Path(f"case-{number}")
    make(folder)
    result: dict[str, Any] = {"kind": "nothing", "message": ""}
    reset_peak()
    before = peak()
    try:
        use(folder)
    except BaseException as error:
        result = {"kind": type(error).__name__, "message": str(error)}
    result["mb"] = round(peak() - before, 1)
    result["canary"] = Path(CANARY).exists()
    Path(CANARY).unlink(missing_ok=True)
    result["folder"] = str(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def program(home: Path) -> None:
    os.chdir(home)
    torch.set_num_threads(1)
    rlpg.train("CartPole-v1", total_steps=64, run_dir="run", recipe="default", overrides=SETTINGS)
    rlpg.resume("run", total_steps=80)  # everything a case could use is imported
    open_policy(Path("run/policy"))
    open_checkpoint_untouched()
    all_policies()
    all_checkpoints()
    all_recipes()
    results = {}
    for number, (name, case) in enumerate({**CASES, **HARMLESS}.items()):
        results[name] = {**opened(name, case, number), "harmless": name in HARMLESS}
    json.dump(results, sys.stdout)


def open_checkpoint_untouched() -> None:
    """The forgery without a change is accepted: what is refused is refused for its reason."""
    forge_policy(Path("honest-policy"))
    open_policy(Path("honest-policy"))
    forge_checkpoint(Path("honest"))
    open_checkpoint(Path("honest"))


if __name__ == "__main__":
    program(Path(sys.argv[1]))
