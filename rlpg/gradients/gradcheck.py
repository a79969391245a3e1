"""Is this gradient the gradient of the objective? And if not, which mistake does it look like?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from rlpg.errors import EstimatorError, InconclusiveError
from rlpg.gradients import experiment
from rlpg.gradients.events import BRANCHING
from rlpg.gradients.experiment import Params, Problem, TapeMaker
from rlpg.gradients.mistakes import Check, recognize
from rlpg.gradients.tape import How

Z = 4.5  # repeated looks at up to 12 directions: a false alarm in fewer than 1 of 500 checks
RARE = 10  # differences other than 0 that a verdict needs, as far as max_repeats go


@dataclass(frozen=True)
class Agreement:
    """Two gradients that agree, along `directions` of parameter space."""

    estimate: Tensor  # [K] mean over all repeats
    reference: Tensor  # [K]
    standard_error: Tensor  # [K] of their difference
    resolution: float  # largest bias that could have hidden, as a fraction of the gradient
    repeats: int

    def __str__(self) -> str:
        return (
            f"gradient agrees in {len(self.estimate)} directions after {self.repeats} repeats; a "
            f"bias of {self.resolution:.1%} of its length would have shown"
        )


def gradcheck(
    problem: Problem,
    params: Params,
    how: How | TapeMaker = "score",
    *,
    against: Literal["finite_difference", "score"] | Params = "finite_difference",
    order: int = 1,
    num_lanes: int = 1000,
    resolution: float = 0.05,
    max_repeats: int = 2048,
    tolerance: float = 0.01,
    step: float = 0.02,
    seed: int = 0,
) -> Agreement:
    """The agreement of a gradient with a reference, or an `EstimatorError` that says what is wrong.

    Repeats the program, doubling the repeats, until a bias of `resolution` times the gradient's
    length would show. It fails where the difference is 4.5 standard errors and `tolerance` of the
    length of that parameter's gradient; the error names a cause only if that was tested for. Where
    `max_repeats` do not suffice to tell, or a step of half the length tells otherwise, it raises
    `InconclusiveError`: that says nothing against the gradient. The state of torch's global
    generator is restored afterwards, and so are the parameters, which finite differences shift.

    Args:
        problem: writes samples and terms on the tape. If it returns a scalar, that one is
            differentiated in place of the tape's surrogate: so a surrogate written by hand is
            checked, against the objective that the tape has seen.
        params: leaf tensors; up to 12 elements are checked one by one, else 12 random directions.
        how: the estimator, or a function that makes the `Tape`.
        against: "finite_difference" of the objective with common random numbers (fourth order);
            "score", the tape's own estimator; or exact gradients in the form of `params`.
        order: 2 checks the second derivative of `surrogate(order=2)`, along a random direction,
            against differences of the first.
        step: of the finite difference, times max(1, |parameter|). Larger for discrete samples.
    """
    tensors = experiment.named(params)
    make = experiment.tape_maker(how)
    check = Check(problem, tensors, make, num_lanes, order, step, seed)
    experiment.refuse_coupled_lanes(problem, tensors, check.like, num_lanes, seed)
    if isinstance(against, str) and against not in ("score", "finite_difference"):
        raise EstimatorError(
            f"against: expected 'finite_difference', 'score' or exact gradients, got {against!r}"
        )
    if order != 1 and not (isinstance(against, str) and against == "finite_difference"):
        raise EstimatorError(
            "against: expected 'finite_difference' with order=2, got another reference"
        )
    exact = None if isinstance(against, str) else check.along(_flat(against, tensors))

    halved: Callable[[int], Tensor] | None = None
    if exact is not None:
        reference: Callable[[int], Tensor] = partial(_same, exact)
    elif against == "score":
        reference = check.by_score
    else:
        usual = check.like.how  # with its branches, which the program may count on
        way: How = usual if usual in BRANCHING else "score"
        reference = partial(check.by_differences, how=way)
        halved = partial(replace(check, step=0.5 * step).by_differences, how=way)
    found = _decide(check, reference, halved, resolution, max_repeats, tolerance)
    if halved is not None and order == 1 and not (found.estimate.any() or found.reference.any()):
        raise InconclusiveError(
            "gradcheck: expected an objective that moves with the parameters, got differences and "
            "gradients of 0 in every repeat; pass the tensors that the program uses (a copy is "
            "another one), or more lanes where what they move is rare"
        )
    return found


def _decide(
    check: Check,
    reference: Callable[[int], Tensor],
    halved: Callable[[int], Tensor] | None,
    resolution: float,
    max_repeats: int,
    tolerance: float,
) -> Agreement:
    got: list[Tensor] = []
    want: list[Tensor] = []
    stream, repeats, confirming = experiment.seeds(check.seed, 1), 32, False
    while True:
        for one in islice(stream, repeats - len(got)):
            got.append(check.estimate(one))
            want.append(reference(one))
        a, b = torch.stack(got), torch.stack(want)
        difference, error = (a - b).mean(0), (a - b).std(0) / math.sqrt(repeats)
        length = max(float(a.mean(0).norm()), float(b.mean(0).norm()), 1e-12)
        lengths = torch.maximum(check.lengths(a.mean(0)), check.lengths(b.mean(0)))
        wrong = (difference.abs() > Z * error) & (difference.abs() > tolerance * lengths)
        visible = Z * float(error.max()) / length
        if bool(wrong.any()):
            if halved is not None:
                check.refuse_outside()
            # Few repeats underestimate heavy tails, as of differences that hardly ever see a jump.
            rare = halved is not None and bool((wrong & ((b != 0).sum(0) < RARE)).any())
            if not confirming or (rare and repeats < max_repeats):  # look again, longer
                repeats, confirming = 4 * repeats, True
                continue
            if halved is not None:
                few = islice(experiment.seeds(check.seed, 1), len(b))
                moved = b - torch.stack([halved(one) for one in few])
                shift, noise = moved.mean(0).abs(), moved.std(0) / math.sqrt(len(b))
                wrong &= (shift <= Z * noise) | (shift <= 0.5 * difference.abs())
                if not bool(wrong.any()):
                    raise InconclusiveError(
                        "gradcheck: expected finite differences that agree with those of half the "
                        f"step, got others, by {float(shift.max()):.2g}; choose a smaller step"
                    )
            worst = int((wrong * difference.abs() / error.clamp(min=1e-12)).argmax())
            raise EstimatorError(
                f"gradcheck: expected {float(b.mean(0)[worst]):.5g} {check.labels[worst]}, got "
                f"{float(a.mean(0)[worst]):.5g} ({repeats} repeats, standard error of the "
                f"difference {float(error[worst]):.2g}); {recognize(check, a, b, Z, tolerance)}"
            )
        if visible <= max(resolution, tolerance):
            return Agreement(a.mean(0), b.mean(0), error, visible, repeats)
        if repeats >= max_repeats:
            raise InconclusiveError(
                f"gradcheck: expected to see a bias of {resolution:.1%}, got noise that hides up "
                f"to {visible:.1%} after {repeats} repeats of {check.num_lanes} lanes; use more "
                "lanes or a baseline, a larger step, or a coarser resolution"
            )
        repeats, confirming = 2 * repeats, False


def _same(exact: Tensor, one: int) -> Tensor:
    return exact


def _flat(exact: Params, tensors: Mapping[str, Tensor]) -> Tensor:
    if isinstance(exact, Tensor):
        exact = [exact]
    values = [exact[name] for name in tensors] if isinstance(exact, Mapping) else list(exact)
    if [value.shape for value in values] != [tensor.shape for tensor in tensors.values()]:
        raise EstimatorError(
            f"against: expected gradients of shapes {[list(t.shape) for t in tensors.values()]}, "
            f"got {[list(value.shape) for value in values]}; one per parameter"
        )
    return torch.cat([value.detach().double().cpu().reshape(-1) for value in values])
