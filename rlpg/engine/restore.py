"""State trees of tensors and arrays, and how the parts of a run are brought back to one.

The hashes of a checkpoint say that it is what somebody wrote, not that it belongs to this run. So a
part that was given its state is asked for its state again, which must be what was saved to the bit:
a dtype that was cast, a name that was ignored or a number that was clipped shows there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlpg.errors import FileError, RlpgError, TrainingError

MISFITS = (RlpgError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
           ValueError)  # fmt: skip

# A state with the moments of its optimizers, in bytes of one without, and what grows besides: the
# entries per time step of a baseline, the running returns.
MOST_PER_BYTE, SPARE = 4, 16 << 20


class Part(Protocol):
    """Something with a state."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state, as a tree of plain values, tensors and arrays."""
        ...

    def load_state_dict(self, state: Any) -> object:
        """Go on from a state; a non-empty string says why that is not quite possible."""
        ...


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


def restore_tensors(part: Part, state: Any, name: str) -> None:
    """Bring a fresh part, which works on finite tensors, to a state tree of arrays.

    Raises:
        ValueError, or what the part raises: this cannot be the state of such a part, which cannot
            be used any more.
    """
    own = num_bytes(part.state_dict())
    if num_bytes(state) > MOST_PER_BYTE * own + SPARE:  # before any of it is copied
        raise ValueError(f"{name}: expected a state of {own} bytes and moments, got more")
    require_finite(state, name)
    restore(part, state, name, to_tensors(state))


def restore(part: Part, state: Any, name: str, given: Any = None) -> str:
    """Bring a fresh part to a state tree of arrays, or to `given`, which stands for it.

    Returns:
        "", or in one line why the part could not be brought there, in its own words.

    Raises:
        ValueError, or what the part raises: this cannot be the state of such a part, which cannot
            be used any more.
    """
    problem = part.load_state_dict(state if given is None else given)
    if isinstance(problem, str) and problem:
        return problem
    require_same(state, to_arrays(part.state_dict()), name)
    return ""


# ---- trees -----------------------------------------------------------------------------------


def to_arrays(tree: Any) -> Any:
    """The tree with numpy arrays for its tensors."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().numpy().copy()
    if isinstance(tree, Mapping):
        return {key: to_arrays(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(to_arrays(value) for value in tree)
    return tree


def to_tensors(tree: Any) -> Any:
    """The tree with tensors for its numpy arrays."""
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree.copy())
    if isinstance(tree, Mapping):
        return {key: to_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(to_tensors(value) for value in tree)
    return tree


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What is in the tree besides its tables and lists, each with its dotted name."""
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from leaves(child, f"{name}.{key}")
    elif isinstance(tree, list | tuple):
        for place, child in enumerate(tree):
            yield from leaves(child, f"{name}.{place}")
    else:
        yield name, tree


def num_bytes(tree: Any) -> int:
    """Of the arrays and tensors in the tree."""
    return sum(leaf.nbytes for _, leaf in leaves(tree) if isinstance(leaf, np.ndarray | Tensor))


def require_finite(tree: Any, name: str) -> None:
    """ValueError for an array or a number that is not finite: a learner's update refuses them."""
    for where, leaf in leaves(tree, name):
        if isinstance(leaf, np.ndarray | float) and not np.isfinite(leaf).all():
            raise ValueError(f"{where}: expected finite numbers, got others")


def require_same(saved: Any, own: Any, name: str) -> None:
    """ValueError that names the first place where they differ in kind, shape, dtype or bits."""
    same = type(saved) is type(own)
    if same and isinstance(saved, Mapping):
        same = saved.keys() == own.keys()
        for key in saved if same else ():
            require_same(saved[key], own[key], f"{name}.{key}")
    elif same and isinstance(saved, list | tuple):
        same = len(saved) == len(own)
        for place, (theirs, ours) in enumerate(zip(saved, own, strict=True) if same else ()):
            require_same(theirs, ours, f"{name}.{place}")
    elif same and isinstance(saved, np.ndarray):
        same = (saved.dtype, saved.shape) == (own.dtype, own.shape)
        same = same and saved.tobytes() == own.tobytes()
    elif same:
        same = saved == own or (isinstance(saved, float) and math.isnan(saved) and math.isnan(own))
    if not same:
        raise ValueError(f"{name}: expected {own!r:.80}, got {saved!r:.80}")
