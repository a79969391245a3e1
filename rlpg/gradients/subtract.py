"""What each node of a tape subtracts from its returns."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import Baseline, Lanes, LeaveOneOut, OptimalConstant, ValueAt
from rlpg.gradients.combine import lane_gradients
from rlpg.gradients.events import Node
from rlpg.gradients.guards import naming
from rlpg.gradients.parameters import detached_twin


def lanes_of(node: Node, returns: Tensor) -> Lanes:
    return Lanes(returns, node.index, lambda: _score_square(node))


def baseline_of(node: Node, returns: Tensor, *, halves: bool = False) -> Tensor | float:
    """The number, or `[lanes]`, to subtract from the node's returns.

    With `halves`, statistics stay within the even and within the odd lanes: the halves between
    which "combine" swaps its weights must know nothing of each other.
    """
    given = node.baseline
    if given is None or isinstance(given, int | float):
        return float(given or 0.0)
    if isinstance(given, Tensor):
        return _per_lane(node, given, returns)
    if node.branch is not None:
        raise EstimatorError(
            f"{node.name}: expected a number or tensor as baseline inside branches, got "
            f"{type(given).__name__}; the returns of its branches are not comparable"
        )
    if node.subtracted is not None:
        return node.subtracted
    if not isinstance(given, Baseline):
        if node.lanes_may_depend:
            raise _looks_at_lanes(node)
        if halves:
            raise EstimatorError(
                f"{node.name}: expected a number, tensor or Baseline beside how='combine', got a "
                "function; its two halves must know nothing of each other: use LeaveOneOut()"
            )
        state = torch.random.get_rng_state()
        value = _per_lane(node, torch.as_tensor(given(returns.clone())), returns)
        leaves_own_out(node, given, returns, value, state)
        return value
    if isinstance(given, LeaveOneOut | OptimalConstant) and len(returns) < 2 * (1 + halves):
        raise EstimatorError(
            f"{node.name}: {type(given).__name__}: expected at least 2 lanes, got {len(returns)}"
        )
    if halves and isinstance(given, LeaveOneOut) and given.groups is not None:
        raise EstimatorError(
            f"{node.name}: expected LeaveOneOut() beside how='combine', got one with groups"
        )
    if halves and not isinstance(given, ValueAt):
        return _by_halves(node, given, returns)
    value = _per_lane(node, given(lanes_of(node, returns), returns[None].clone())[0], returns)
    if node.lanes_may_depend:
        others = returns.flip(0) + 1.0 + returns.abs().max()
        if not torch.equal(given(lanes_of(node, others), others[None])[0], value):
            raise _looks_at_lanes(node)
    return value


def _looks_at_lanes(node: Node) -> EstimatorError:
    return EstimatorError(
        f"{node.name}: expected a baseline of past returns or of the state where uniforms are "
        "given, got one of these lanes' returns; use MovingAverage() or a Value"
    )


def leaves_own_out(
    node: Node, given: Callable[[Tensor], Tensor], returns: Tensor, value: Tensor, state: Tensor
) -> None:
    """A function that is given the returns must not use lane i's for lane i: change that one, to
    more and to less than all others, and look. All lanes in turn, or 16 that the returns choose.

    Args:
        state: of the random numbers when `value` was computed; a function may draw some.
    """
    lanes, values = len(returns), returns.detach().cpu().double()
    chosen = torch.Generator().manual_seed(zlib.crc32(values.numpy().tobytes()))
    above = 1.0 + returns.abs().max()
    rounding = 64 * torch.finfo(returns.dtype).eps * float(above)
    after = torch.random.get_rng_state()
    try:
        for lane in torch.randperm(lanes, generator=chosen)[:16].tolist():
            for moved in (returns[lane] + above, returns[lane] - 2 * above):
                changed = returns.clone()
                changed[lane] = moved
                torch.random.set_rng_state(state)
                again = torch.as_tensor(given(changed))
                if float((again - value).expand(returns.shape)[lane].abs()) > rounding:
                    raise EstimatorError(
                        f"{node.name}: expected a baseline that leaves each lane's own return out, "
                        "got one that depends on it; use LeaveOneOut()"
                    )
    finally:
        torch.random.set_rng_state(after)


def _by_halves(node: Node, given: Baseline, returns: Tensor) -> Tensor:
    square = _score_square(node) if isinstance(given, OptimalConstant) else returns
    value = torch.empty_like(returns)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        lanes = Lanes(returns[half], node.index, lambda half=half: square[half])  # type: ignore[misc]
        value[half] = _per_lane(node, given(lanes, returns[None, half].clone())[0], returns[half])
    return value


def _per_lane(node: Node, value: Tensor, returns: Tensor) -> Tensor:
    if value.requires_grad:
        raise EstimatorError(f"{node.name}: expected a baseline without a gradient; detach it")
    if value.dim() > 0 and value.shape != returns.shape[-value.dim() :]:
        raise EstimatorError(
            f"{node.name}: expected a baseline {list(returns.shape)}, got {list(value.shape)}"
        )
    return value


def in_branches(node: Node, baseline: Tensor | float) -> Tensor | float:
    """The baseline as it counts: times the weight of the node's branch, like its returns."""
    if node.branch is None:
        return baseline
    return (node.branch.detach() * baseline).sum_to_size(node.log_prob.shape)


def _score_square(node: Node) -> Tensor:
    with naming(node.name), torch.enable_grad():
        twin, leaves = detached_twin(node.dist, by_logits=True)
        log_prob = twin.log_prob(node.sample)
        lanes = len(log_prob)
        log_prob = log_prob.reshape(lanes, -1).sum(1)
        score = lane_gradients(log_prob, leaves, torch.ones_like(log_prob))
    return torch.stack([s.square().reshape(lanes, -1).sum(1) for s in score]).sum(0)
