"""Terms that are added when the program has ended are the same program."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from rlpg.errors import EstimatorError
from rlpg.gradients.afterwards import add_terms
from rlpg.gradients.tape import How, Tape


@pytest.mark.parametrize("how", ["score", "pathwise", "combine"])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.7])
def test_terms_that_are_added_afterwards_are_the_same_program(how: How, gae_lambda: float) -> None:
    """Two steps, the first of which ends the episode in some lanes."""
    discounts = [torch.tensor([0.9, 0.0] * 4), torch.full((8,), 0.9)]
    baselines = [torch.linspace(0, 1, 8), torch.linspace(2, -1, 8)]
    found = []
    for afterwards in (False, True):
        mean = torch.tensor(0.3, requires_grad=True)
        tape = Tape(how, gae_lambda=gae_lambda)
        terms = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for t in range(2):
                x = tape.sample(Normal(mean * torch.ones(8), 0.5), baseline=baselines[t])
                term = (x - t).square() + (terms[-1] if terms else 0.0)
                terms.append(term)
                if not afterwards:
                    tape.add(term, discounts[t], independent=True)
        if afterwards:
            add_terms(tape, terms, discounts, baselines)
        surrogate = tape.surrogate()
        surrogate.backward()
        found.append((float(surrogate.detach()), float(mean.grad)))  # type: ignore[arg-type]
    assert found[0] == found[1]


def test_terms_are_added_afterwards_once_and_for_every_sample() -> None:
    tape = Tape("pathwise")
    x = tape.sample(Normal(torch.ones(4, requires_grad=True), 1.0))
    with pytest.raises(EstimatorError, match="got 2 terms and 1 entries; call it once, after all"):
        add_terms(tape, [x, x], [torch.ones(4)] * 2)
    add_terms(tape, [x], [torch.ones(4)])
    with pytest.raises(EstimatorError, match="got 1 terms and 2 entries"):
        add_terms(tape, [x], [torch.ones(4)])
