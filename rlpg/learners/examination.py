"""What the first updates look for in a policy and a value network of one's own: that the output for
a sample follows from the sample and the parameters, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rlpg.errors import UsageError
from rlpg.gradients.baselines import Baseline
from rlpg.learners.batch import Batch
from rlpg.learners.optimizer import refuse_unregistered
from rlpg.learners.values import StateValue
from rlpg.policies import Policy

NUM_UPDATES = 2  # a last layer that begins at 0 shows nothing of the others at first


def examine(batch: Batch, policy: Policy, baseline: Baseline) -> None:
    """Raise UsageError where log-probs or values depend on anything but sample and parameters."""
    some, rollout, device = next(batch.chunks()), batch.rollout, policy.device

    def log_prob(index: Tensor | slice) -> Tensor:
        part = some[index]
        return part.log_prob_of(part.distribution(policy))

    _refuse_other_causes(log_prob, len(some), "policy", device)
    with torch.enable_grad():
        refuse_unregistered(log_prob(slice(1)), policy.parameters(), "policy")
    if isinstance(baseline, StateValue):
        predict, num_envs = baseline.predict, rollout.reward.shape[1]

        def value(index: Tensor) -> Tensor:
            return predict(replace(rollout, obs=rollout.obs[:, index]))[0]

        _refuse_other_causes(value, num_envs, "value network", device)
        baseline.refuse_unregistered(some.obs[:1])


@torch.no_grad()
def _refuse_other_causes(
    output: Callable[[Tensor], Tensor], size: int, name: str, device: torch.device
) -> None:
    """Raise UsageError where the output for a sample depends on torch's global generators (by
    `F.dropout`, or a layer that `refuse_unusable` does not know), on the samples beside it, or
    on what was seen before.

    Args:
        output: for the samples of an index `[size]`, which stand in its last dimension.
    """

    def generators() -> list[Tensor]:
        on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return [torch.get_rng_state(), *on_gpu]

    index = torch.arange(size, device=device)
    before, once = generators(), output(index)
    # Another thread may have drawn meanwhile.
    if not all(map(torch.equal, before, generators())) and not torch.equal(once, output(index)):
        raise UsageError(
            f"{name}: expected the same output for a sample whenever it is seen, got another one "
            "the second time, which torch's random numbers decide on (F.dropout, nn.RReLU, "
            "torch.rand); leave them out"
        )
    index[::2] = size - 1  # as many samples: the others are computed alike, to the bit
    kept, again = (part[..., 1::2] for part in (once, output(index)))
    if not torch.allclose(kept, again, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise UsageError(
            f"{name}: expected the same output for a sample whatever is beside it, got another one "
            "in another batch (a mean over dim 0; attention or nn.GRU on [B, F], which they take "
            "for a sequence; a tensor kept from an earlier pass); compute each row by itself"
        )
