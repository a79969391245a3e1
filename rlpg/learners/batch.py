"""`Batch`: the samples of a rollout as a learner takes them, and their minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.distributions import Distribution

from rlpg.distributed import is_alone
from rlpg.errors import UsageError
from rlpg.learners.advantages import Advantages, normalize, normalize_rows
from rlpg.learners.gradient_noise import environment_groups
from rlpg.learners.shuffling import Places, places, shuffled
from rlpg.learners.values import CHUNK
from rlpg.policies import Carry, Policy, map_carry
from rlpg.policies.distributions import checked_log_prob
from rlpg.rollouts.rollout import Rollout, rows

_PER_SAMPLE = "obs", "action", "log_prob", "advantage", "returns", "value", "weight"


@dataclass(frozen=True)
class Batch:
    """S samples of a rollout, drawn by the policy that acted; they carry no gradient.

    With memory the samples stay in their order: each `[S]` is `[T, n]`, sequences of n
    environments, and slots that are not samples have weight 0.
    """

    obs: Tensor  # [S, *O] packed observations
    action: Tensor  # [S, *A]
    log_prob: Tensor  # [S] under the policy that acted; NaN where the learner asked for none
    advantage: Tensor  # [S] as the surrogate takes it
    returns: Tensor  # [S] what a critic is to predict
    value: Tensor  # [S] what the baseline predicted
    weight: Tensor  # [S] share in the mean; the weights of steps sum to 1
    carry: Carry  # [n, ...] before the first step; None without memory
    episode_start: Tensor | None  # [T, n] bool; None without memory
    group_sizes: tuple[int, ...]  # environments in each of the groups that the samples are laid in
    group_ends: tuple[int, ...]  # where each group ends: samples, or environments with memory
    rollout: Rollout  # where the samples are from
    advantages: Advantages  # of the rollout, [T, N]

    @staticmethod
    def of(rollout: Rollout, advantages: Advantages, *, in_order: bool) -> Batch:
        """The samples of positive weight, laid group of environments by group; no log-probs yet.
        In order, for a policy with memory: all steps as they were."""
        groups = environment_groups(*rollout.reward.shape)
        kept = advantages.weight > 0
        parts: tuple[Tensor, ...] = (
            rollout.obs[:-1], rollout.action, torch.full_like(advantages.weight, torch.nan),
            advantages.normalized, advantages.returns, advantages.returns - advantages.advantage,
            advantages.weight,
        )  # fmt: skip
        ends, carry, starts = [envs.stop for envs in groups], None, None
        if in_order:
            carry, starts = rollout.carry, rollout.episode_start[:-1]
        else:
            is_whole = bool(kept.all())  # then no group has to be looked at
            selects = [(rows(kept[:, envs], are_all=is_whole), envs) for envs in groups]
            laid = [[select(part[:, envs]) for select, envs in selects] for part in parts]
            ends = list(accumulate(map(len, laid[-1])))
            parts = tuple(part[0] if len(part) == 1 else torch.cat(part) for part in laid)
        return Batch(
            **dict(zip(_PER_SAMPLE, parts, strict=True)), carry=carry, episode_start=starts,
            group_sizes=tuple(envs.stop - envs.start for envs in groups), group_ends=tuple(ends),
            rollout=rollout, advantages=advantages,
        )  # fmt: skip

    @property
    def in_order(self) -> bool:
        """Whether the samples are sequences, for a policy with memory."""
        return self.episode_start is not None

    def __len__(self) -> int:
        """Samples, or environments with memory: what minibatches are made of."""
        return self.weight.shape[1] if self.in_order else len(self.weight)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """Some samples, or the sequences of some environments with memory, as they are."""
        where = (slice(None), index) if self.in_order else index
        starts = None if self.episode_start is None else self.episode_start[where]
        return replace(
            self,
            **{name: getattr(self, name)[where] for name in _PER_SAMPLE},
            carry=map_carry(lambda part: part[index], self.carry),
            episode_start=starts,
            group_sizes=(1,),
            group_ends=(len(self),),
        )

    @cached_property
    def places(self) -> Places:
        """Where the samples, or the sequences, of the whole batch are among those of all ranks."""
        kept = self.advantages.weight > 0  # [T, N]
        groups = partial(environment_groups, len(kept))
        return places(kept, self.weight.numel(), groups, in_order=self.in_order)

    @property
    def groups(self) -> list[Batch]:
        """The batch by groups of environments, which are independent of each other."""
        if len(self.group_ends) == 1:
            return [self]
        return [self[a:b] for a, b in pairwise((0, *self.group_ends))]

    def chunks(self) -> Iterator[Batch]:
        """Parts of a size that a CPU's cache holds, in order; weights as they are."""
        size = max(CHUNK // len(self.weight), 1) if self.in_order else CHUNK
        if len(self) <= size or self.weight.device.type != "cpu":
            return iter([self])
        return (self[start : start + size] for start in range(0, len(self), size))

    def minibatches(self, num_minibatches: int, generator: torch.Generator) -> Iterator[Batch]:
        """Shuffled parts that cover the batch once; each one's gradient estimates the batch's.

        Args:
            num_minibatches: how many; with memory, at most the number of environments.
            generator: shuffles.

        Raises:
            UsageError: there are fewer samples, or sequences, than that.
        """
        number = self.places.number
        refuse_too_many("num_minibatches", num_minibatches, number, in_order=self.in_order)
        if num_minibatches == 1:
            yield self
            return
        bounds = [number * k // num_minibatches for k in range(num_minibatches + 1)]
        order, cuts = shuffled(self.places, bounds, generator)
        laid = self[order.to(self.weight.device)]  # once; its parts are views
        for (start, stop), (a, b) in zip(pairwise(bounds), pairwise(cuts), strict=True):
            part = laid[a:b]
            yield replace(part, weight=part.weight * (number / (stop - start)))

    def distribution(self, policy: Policy) -> Distribution:
        """The policy's distributions at the observations, with their history where it has one."""
        return policy(self.obs, self.carry, self.episode_start)[0]  # type: ignore[no-any-return]

    def log_prob_of(self, distribution: Distribution) -> Tensor:
        """`[S]` log-probs of the actions.

        Raises:
            UsageError: the distribution gives something else than one number per sample.
        """
        return checked_log_prob(distribution, self.action, self.weight.shape)

    def mean(self, per_sample: Tensor) -> Tensor:
        """Scalar: the weighted sum of `[S]`, whatever stands where the weight is 0."""
        if not self.in_order:  # the samples of positive weight
            return (self.weight * per_sample).sum()
        return torch.where(self.weight > 0, self.weight * per_sample, 0.0).sum()


def normalized(minibatches: list[Batch]) -> list[Batch]:
    """The minibatches with advantages that are normalized in each by itself."""
    found, sizes = [b.advantage for b in minibatches], {b.advantage.shape for b in minibatches}
    if is_alone() and not minibatches[0].in_order and len(sizes) == 1 and len(found[0]) > 1:
        found = list(normalize_rows(torch.stack(found)))
    else:
        found = [normalize(b.advantage, b.weight > 0) for b in minibatches]
    return [replace(b, advantage=new) for b, new in zip(minibatches, found, strict=True)]


def refuse_too_many(name: str, num_minibatches: int, most: int, *, in_order: bool) -> None:
    """Raise UsageError where the setting of that name asks for more minibatches than a rollout has
    samples, or environments where minibatches are sequences."""
    if num_minibatches > most:
        what = "environments (a sequence stays whole)" if in_order else "samples"
        raise UsageError(
            f"{name}: expected at most the {most} {what} of a rollout, got {num_minibatches}; "
            "lower it, or collect more"
        )
