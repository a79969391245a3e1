"""A checkpoint back into the parts of a run; what does not fit is refused, never bent to fit.

The hashes of a checkpoint say that it is what somebody wrote, not that it belongs to this run.
After it was loaded, the parts are asked for their state again, which must be what was saved to the
bit: a dtype that was cast, a name that was ignored or a number that was clipped shows there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rlpg.errors import FileError, RlpgError, TrainingError
from rlpg.learners import Learner
from rlpg.meter import Meter
from rlpg.record import to_arrays, to_tensors
from rlpg.rollouts import Collector
from rlpg.runs.checkpoint import Checkpoint

MISFITS = (RlpgError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
           ValueError)  # fmt: skip

# A state with the moments of its optimizers, in bytes of one without, and what grows besides: the
# entries per time step of a baseline, the running returns.
MOST_PER_BYTE, SPARE = 4, 16 << 20


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Makes what goes wrong inside a FileError that names the checkpoint."""
    try:
        yield
    except TrainingError:  # an environment that died while its episode was replayed
        raise
    except MISFITS as error:
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise FileError(
            f"{path}: expected the state of this run, got one that does not fit: {reason:.300}"
        ) from error


def restore(saved: Checkpoint, learner: Learner, collector: Collector, meter: Meter) -> str:
    """Bring fresh parts to where they were saved.

    Returns:
        "", or in one line why the environments could not be brought back; collecting then goes on
        with fresh episodes.

    Raises:
        FileError: the state is not that of such parts; they cannot be used any more.
    """
    restore_learner(saved, learner)
    with fitting(saved.path):
        state = saved.state
        _require_best(state["best"])
        if state["collector"]["env_steps"] != saved.step:
            raise ValueError(f"env_steps: expected {saved.step}, got others")
        if state["curves"]["step"] > saved.step:
            raise ValueError(f"curves.step: expected at most {saved.step}, got more")
        problem = collector.load_state_dict(state["collector"])
        meter.load_state_dict(state["meter"])
        running = (state["learner"].get("reward_scale") or {}).get("running")
        _require_place("reward_scale.running", running, (collector.num_envs,), "float32")
        if not problem:
            _require_places(state["collector"], collector)
            _require_same(state["collector"], to_arrays(collector.state_dict()), "collector")
        _require_same(state["meter"], to_arrays(meter.state_dict()), "meter")
    return problem


def restore_learner(saved: Checkpoint, learner: Learner) -> None:
    """Bring a fresh learner, its policy included, to where it was saved; else FileError."""
    with fitting(saved.path):
        state = saved.state["learner"]
        own = _num_bytes(to_arrays(learner.state_dict()))
        if _num_bytes(state) > MOST_PER_BYTE * own + SPARE:  # before any of it is copied
            raise ValueError(f"learner: expected a state of {own} bytes and moments, got more")
        _require_finite(state, "learner")
        learner.load_state_dict(to_tensors(state))
        _require_same(state, to_arrays(learner.state_dict()), "learner")


def _num_bytes(node: Any) -> int:
    """Of the arrays in a state tree."""
    if isinstance(node, Mapping):
        return sum(map(_num_bytes, node.values()))
    if isinstance(node, list | tuple):
        return sum(map(_num_bytes, node))
    return node.nbytes if isinstance(node, np.ndarray) else 0


def _require_finite(node: Any, where: str) -> None:
    """No learner's state holds NaN or infinity: its update refuses them."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            _require_finite(child, f"{where}.{key}")
    elif isinstance(node, list | tuple):
        for place, child in enumerate(node):
            _require_finite(child, f"{where}.{place}")
    elif isinstance(node, np.ndarray | float) and not np.isfinite(node).all():
        raise ValueError(f"{where}: expected finite numbers, got others")


def _require_best(best: object) -> None:
    match best:
        case None | (float(), int()):
            return
    raise ValueError(f"best: expected a mean return and a step, got {best!r:.80}")


def _require_places(state: Mapping[str, Any], collector: Collector) -> None:
    """Each environment has its own entry: numpy would repeat one that stands for several."""
    each = (collector.num_envs,)
    for name, shape in {
        "obs": each + collector.policy.observations.shape,
        "ended": each,
        "returns": each,
        "lengths": each,
    }.items():
        _require_place(name, state[name], shape)


def _require_place(name: str, value: Any, shape: tuple[int, ...], dtype: str = "") -> None:
    """ValueError where there is no array of that shape, and of that dtype if one is asked for."""
    if value is None or (
        isinstance(value, np.ndarray) and value.shape == shape and dtype in ("", value.dtype.name)
    ):
        return
    got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"{value!r:.80}"
    raise ValueError(f"{name}: expected an array {dtype} {shape}, got {got}")


def _require_same(saved: Any, own: Any, where: str) -> None:
    """ValueError that names the first place where they differ in kind, shape, dtype or bits."""
    same = type(saved) is type(own)
    if same and isinstance(saved, Mapping):
        same = saved.keys() == own.keys()
        for key in saved if same else ():
            _require_same(saved[key], own[key], f"{where}.{key}")
    elif same and isinstance(saved, list | tuple):
        same = len(saved) == len(own)
        for place, (theirs, ours) in enumerate(zip(saved, own, strict=True) if same else ()):
            _require_same(theirs, ours, f"{where}.{place}")
    elif same and isinstance(saved, np.ndarray):
        same = (saved.dtype, saved.shape) == (own.dtype, own.shape)
        same = same and saved.tobytes() == own.tobytes()
    elif same and isinstance(saved, float):
        same = saved == own or (math.isnan(saved) and math.isnan(own))
    elif same:
        same = saved == own
    if not same:
        raise ValueError(f"{where}: expected {own!r:.80}, got {saved!r:.80}")
