"""Terms that are only known when a program has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlpg.errors import EstimatorError
from rlpg.gradients.events import Node, Path, Term
from rlpg.gradients.tape import Tape


def add_terms(
    tape: Tape,
    terms: Sequence[Tensor],
    discounts: Sequence[Tensor],
    baselines: Sequence[Tensor] | None = None,
) -> None:
    """Puts one term right after each of the tape's samples, in order, where none was added yet.

    For rewards that are scaled, or that the value of what follows is added to.

    Args:
        tape: its samples are differentiated by "score", "pathwise" or "combine".
        terms: `[lanes]` each, as many as there are samples.
        discounts: `[lanes]` each, in [0, 1]; see `Tape.add`. They are taken as `independent`.
        baselines: `[lanes]` each: what the samples subtract, known before them.

    Raises:
        EstimatorError: there are not as many samples as terms, or something else is on the tape.
    """
    samples = tape.events
    if len(samples) != len(terms) or not all(isinstance(s, Node | Path) for s in samples):
        raise EstimatorError(
            f"add_terms: expected one term for each of the tape's samples and nothing else on it, "
            f"got {len(terms)} terms and {len(samples)} entries; call it once, after all samples"
        )
    tape.events = []
    weight = torch.ones_like(terms[0].detach())
    for k, (sample, term, discount) in enumerate(zip(samples, terms, discounts, strict=True)):
        if isinstance(sample, Node):
            given = sample.baseline if baselines is None else baselines[k]
            sample = replace(sample, weight=weight, baseline=given)
        tape.events += [sample, Term(f"term {k}", term, discount, weight, None)]
        weight = torch.where(discount == 0, 1.0, weight * discount)
    tape._num_terms += len(terms)
