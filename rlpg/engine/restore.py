"""State trees of tensors and arrays, and how the parts of a run are brought back to one.

The hashes of a checkpoint say that it is what somebody wrote, not that it belongs to this run. So a
part that was given its state is asked for its state again, which must be what was saved to the bit:
a dtype that was cast, a name that was ignored or a number that was clipped shows there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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

    def load_state_dict(self, state: Any) -> object:
        """Go on from a state; a non-empty string says why that is not quite possible."""


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
    """`restore` for a fresh part that works on tensors, all of whose numbers must be finite."""
    own = _num_bytes(part.state_dict())
    if _num_bytes(state) > MOST_PER_BYTE * own + SPARE:  # before any of it is copied
        raise ValueError(f"{name}: expected a state of {own} bytes and moments, got more")
    for where, leaf in _leaves(state, name):
        if isinstance(leaf, np.ndarray | float) and not np.isfinite(leaf).all():
            raise ValueError(f"{where}: expected finite numbers, got others")
    tensors = _mapped(state, np.ndarray, lambda array: torch.from_numpy(array.copy()))
    restore(part, state, name, tensors)


def restore(part: Part, state: Any, name: str, given: Any = None) -> str:
    """Bring a fresh part to a state tree of arrays, or to `given`, which stands for it; "", or in
    one line why it could not be brought there. ValueError, or what the part raises, where this
    cannot be the state of such a part, which cannot be used any more."""
    problem = part.load_state_dict(state if given is None else given)
    if isinstance(problem, str) and problem:
        return problem
    require_same(state, to_arrays(part.state_dict()), name)
    return ""


def to_arrays(tree: Any) -> Any:
    """The tree with numpy arrays for its tensors."""
    return _mapped(tree, Tensor, lambda tensor: tensor.detach().cpu().numpy().copy())


def _mapped(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _mapped(value, kind, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, kind, change) for value in tree)
    return change(tree) if isinstance(tree, kind) else tree


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What is in the tree, each with its dotted name; of tables and lists their type."""
    items: Any = ()
    if isinstance(tree, Mapping):
        items, tree = tree.items(), type(tree)
    elif isinstance(tree, list | tuple):
        items, tree = enumerate(tree), type(tree)
    yield name, tree
    for key, child in items:
        yield from _leaves(child, f"{name}.{key}")


def _num_bytes(tree: Any) -> int:
    return sum(
        leaf.nbytes for _, leaf in _leaves(tree, "") if isinstance(leaf, np.ndarray | Tensor)
    )


def require_same(saved: Any, own: Any, name: str) -> None:
    """ValueError that names the first place where they differ in kind, shape, dtype or bits."""
    theirs, ours = dict(_leaves(saved, name)), dict(_leaves(own, name))
    for where in ours | theirs:
        wanted, got = ours.get(where, "nothing"), theirs.get(where, "nothing")
        if _bits(wanted) != _bits(got):
            raise ValueError(f"{where}: expected {wanted!r:.80}, got {got!r:.80}")


def _bits(leaf: Any) -> object:
    if isinstance(leaf, np.ndarray):
        return leaf.dtype, leaf.shape, leaf.tobytes()
    return type(leaf), repr(leaf)
