"""Running a program many times with known random numbers: what `compare` and `gradcheck` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from rlpg.errors import EstimatorError
from rlpg.gradients.events import BRANCHING, Term
from rlpg.gradients.guards import lane_dim
from rlpg.gradients.tape import How, Subtracted, Tape

# A program writes its samples and terms on the tape. It may return a surrogate of its own making:
# then that one is differentiated, and the tape says what the objective is.
Problem = Callable[[Tape, int], Tensor | None]
Params = Mapping[str, Tensor] | Sequence[Tensor] | Tensor
TapeMaker = Callable[[], Tape]


def named(params: Params) -> dict[str, Tensor]:
    """Parameters by name; a sequence is numbered, a single tensor is "parameter"."""
    if isinstance(params, Tensor):
        params = {"parameter": params}
    elif not isinstance(params, Mapping):
        several = params if isinstance(params, Iterable) else [params]
        params = {f"parameter {k}": value for k, value in enumerate(several)}
    for name, value in params.items():
        is_tensor = isinstance(value, Tensor)
        if not (is_tensor and value.requires_grad and value.is_leaf and value.is_floating_point()):
            raise EstimatorError(
                f"{name}: expected a leaf tensor with requires_grad, got "
                f"{'one without' if is_tensor else type(value).__name__}; a network has "
                "dict(net.named_parameters())"
            )
        if any(value is other for key, other in params.items() if key != name):
            raise EstimatorError(f"{name}: expected each tensor once, got it twice; leave one out")
    if not params:
        raise EstimatorError("params: expected at least one tensor, got none")
    return dict(params)


def tape_maker(how: How | TapeMaker) -> TapeMaker:
    """Makes a fresh tape; a maker given by the caller brings its own baseline or credit rule."""
    return how if callable(how) else lambda: Tape(how)


def seeds(seed: int, stream: int) -> Iterator[int]:
    """Endless seeds; two streams, or two seeds, share none."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, stream]))
    while True:
        yield int(generator.integers(2**62))


@contextmanager
def seeded(seed: int, params: Mapping[str, Tensor]) -> Iterator[None]:
    """Runs the block from `seed` and puts the global random numbers back as they were.

    torch.distributions draw from the global generators and can be given no other. They check their
    arguments in the block, because a refusal tells where a parameter's range ends: the first use of
    torch.compile turns that off for the whole process.
    """
    checked = Distribution._validate_args
    devices = sorted({value.get_device() for value in params.values() if value.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        Distribution.set_default_validate_args(True)
        try:
            yield
        finally:
            Distribution.set_default_validate_args(checked)


def gradient(
    surrogate: Tensor, params: Mapping[str, Tensor], *, create_graph: bool = False
) -> Tensor:
    """`[D]` flat gradient; parameters that are not reached count 0. `.grad` is left alone."""
    leaves = list(params.values())
    if not surrogate.requires_grad:
        return torch.cat([torch.zeros_like(leaf).reshape(-1) for leaf in leaves])
    found = torch.autograd.grad(
        surrogate, leaves, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return torch.cat([grad.reshape(-1) for grad in found])


def refuse_coupled_lanes(
    problem: Problem, params: Mapping[str, Tensor], like: Tape, num_lanes: int, seed: int
) -> None:
    """Raises if what happens in one lane depends on a sample of another which is credited with the
    terms of its own lane only: on any but "pathwise" and "biased_" ones.

    Plays the program, then plays it again with the same samples, except that one node of lane 0
    gets the most different one of the other lanes, or its branches in the other order where all
    lanes have the same. Nothing in these may change. Programs that use `resample`, and those that
    return their own surrogate, say how their lanes meet and are not examined.
    """

    def played(script: Sequence[Drawn] = ()) -> tuple[_Replay, Tensor | None]:
        tape = _Replay(like, num_lanes, script)
        with seeded(seed, params):
            return tape, problem(tape, num_lanes)

    start = {name: value.detach().clone() for name, value in params.items()}
    first, own = played()
    for name, value in params.items():
        if not torch.equal(value, start[name]):
            raise EstimatorError(
                f"{name}: expected a program that leaves its parameters as they are, got one that "
                "writes into it; work on a copy"
            )
    if own is not None and (not isinstance(own, Tensor) or own.numel() != 1):
        got = list(own.shape) if isinstance(own, Tensor) else type(own).__name__
        raise EstimatorError(
            f"problem: expected None or a scalar surrogate to be returned, got {got}"
        )
    credited = first.credited
    if num_lanes < 2 or own is not None or first.lanes_meet or not credited:
        return
    for k in sorted({credited[0], credited[len(credited) // 2], credited[-1]}):
        name, x, state = first.drawn[k]
        far = (x.double() - x[:1].double()).abs().reshape(len(x), -1).sum(1)  # [lanes]
        if not far.any() and k not in first.branching:  # one outcome in all lanes
            continue
        other = x[far.argmax()] if far.any() else x[0].flip(0)
        swapped = torch.cat([other[None], x[1:]])
        second, _ = played([*first.drawn[:k], (name, swapped, state), *first.drawn[k + 1 :]])
        seen, now = [*first.outcomes()], [*second.outcomes()]
        if len(seen) != len(now):  # lane 0 made a loop longer or shorter: nothing is side by side
            continue
        if not _alike(seen, now) and _alike(seen, [*played(first.drawn)[0].outcomes()]):
            raise EstimatorError(
                f"{name}: expected independent lanes, got lanes coupled by a batch statistic; "
                "use tape.resample, or how='pathwise'"
            )


def _alike(seen: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether two plays saw the same; a program with noise or a memory of its own may not."""
    return len(seen) == len(now) and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(seen, now, strict=True)
    )


# A sample's name and value `[lanes, ...]`, and the generator's state after it.
Drawn = tuple[str, Tensor, Tensor]


class _Replay(Tape):
    """Samples what the script says, and remembers what every lane saw."""

    def __init__(self, like: Tape, num_lanes: int, script: Sequence[Drawn]) -> None:
        super().__init__(like.how, num_lanes=num_lanes, num_draws=like.num_draws)
        self.script, self.drawn, self.lanes_meet = script, list[Drawn](), False
        self.credited: list[int] = []  # draws that are paid by the terms of their own lane
        self.branching: set[int] = set()
        self.log_probs: list[Tensor] = []

    def _draw(self, name: str, dist: Distribution, how: How, subtract: Subtracted) -> Tensor:
        k, sizes = len(self.drawn), () if self._branch is None else self._branch.shape[:-1]
        if how != "pathwise" and not how.startswith("biased_"):
            self.credited.append(k)
        if how in BRANCHING:
            self.branching.add(k)
            x, lane = super()._draw(name, dist, how, subtract), 1 + len(sizes)
        else:
            lane = lane_dim(name, dist.batch_shape, sizes, self.num_lanes)
            x = dist.sample()
        drawn = given = x.movedim(lane, 0)  # [lanes, ...]
        if k < len(self.script):
            # How many numbers a draw takes may depend on lane 0: the program's own are not to.
            _, given, state = self.script[k]
            torch.default_generator.set_state(state)
        try:
            log_prob = dist.log_prob(given.movedim(0, lane))
        except ValueError:  # what lane 0 drew then is impossible now
            given = torch.cat([drawn[:1], given[1:]])
            log_prob = dist.log_prob(given.movedim(0, lane))
        except NotImplementedError:  # a path needs none
            log_prob = torch.zeros(x.shape)
        self.drawn.append((name, given, torch.default_generator.get_state()))
        self.log_probs.append(log_prob.movedim(lane, 0))
        return given.movedim(0, lane)

    def resample(self, x: Tensor, how: How | None = None, name: str | None = None) -> Tensor:
        self.lanes_meet = True
        return x

    def outcomes(self) -> Iterator[Tensor]:
        """What lanes 1, 2, ... saw: log-probabilities of their samples and their terms."""
        yield from (log_prob[1:] for log_prob in self.log_probs)
        yield from (event.value[..., 1:] for event in self.events if isinstance(event, Term))
