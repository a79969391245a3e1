"""Baselines that predict the value of any state: a linear fit and a value network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlpg.distributed import (
    gather_columns,
    is_alone,
    num_ranks,
    own_columns,
    sum_over_ranks,
    sums_over_ranks,
)
from rlpg.errors import UsageError
from rlpg.gradients.baselines import STATISTICAL, Baseline, Value
from rlpg.gradients.parameters import leaves_of
from rlpg.learners import rules
from rlpg.learners.optimizer import Optimizer, refuse_unregistered
from rlpg.learners.settings import PREDICTING, LearnerSettings
from rlpg.learners.shuffling import Places, places, shuffled
from rlpg.policies import Network, Policy, map_carry
from rlpg.policies.networks import Carry, carry_parts, global_generator_from, refuse_unusable
from rlpg.rollouts.rollout import Rollout, rows

CHUNK = 2048  # samples that go through a network at once, on a CPU
MAX_GRAD_NORM = 1.0  # of the value network: an outlier return moves it by no more than others


class StateValue(Baseline):
    """A baseline that knows the value of any state, so returns can be bootstrapped with it."""

    @abstractmethod
    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """`(value, successor_value)`, each `[T, N]`: V at `obs[t]` and at its true successor."""

    def __call__(self, samples: Rollout, returns: Tensor) -> Tensor:  # type: ignore[override]
        return self.predict(samples)[0]

    def advance(self, rollout: Rollout) -> None:
        """Go on to what follows the rollout; a learner calls this once, after its update."""

    def refuse_unregistered(self, obs: Tensor) -> None:
        """Raises UsageError where the values of obs depend on what learns but is no parameter."""


class LinearValue(StateValue):
    """V(s, t) = w . [o, o^2, t/100, (t/100)^2, (t/100)^3, 1], fitted by ridge regression.

    Source: Duan et al. 2016, "Benchmarking Deep Reinforcement Learning", appendix 2. Fitted on the
    previous batch, so it is 0 for the first one.

    Args:
        features: packed observations `[..., *O]` to features `[..., F]`.
        ridge: weight of |w|^2 per sample; raised tenfold until the solution is finite.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], *, ridge: float = 1e-5) -> None:
        self._features = features
        self._ridge = ridge
        self.coefficients: Tensor | None = None  # [2 F + 4] float64

    def _design(self, obs: Tensor, time: Tensor) -> Tensor:
        features = self._features(obs).double().clamp(-10, 10)  # [..., F]
        t = time.double().unsqueeze(-1) / 100  # [..., 1]
        return torch.cat([features, features**2, t, t**2, t**3, torch.ones_like(t)], dim=-1)

    @torch.no_grad()
    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        if self.coefficients is None:
            return torch.zeros_like(rollout.reward), torch.zeros_like(rollout.reward)
        weights = self.coefficients.to(rollout.obs.device)
        value = self._design(rollout.obs[:-1], rollout.time) @ weights  # [T, N]
        # A successor's clock is one step on, whatever the reset did to the next slot.
        after = self._design(rollout.obs[1:], rollout.time + 1) @ weights  # [T, N]
        time = rollout.time[rollout.final_step, rollout.final_env] + 1  # [K]
        after[rollout.final_step, rollout.final_env] = (
            self._design(rollout.final_obs, time) @ weights
        )
        return value.float(), after.float()

    @torch.no_grad()
    def update(  # type: ignore[override]  # the samples of a learner are a rollout
        self, samples: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Refit on this batch alone."""
        keep = weight > 0
        design = self._design(samples.obs[:-1], samples.time)[keep]  # [S, 2 F + 4]
        target = returns[keep].double()  # [S]
        # With fewer samples than numbers (images) w = D' (D D' + ridge)^-1 target: the same w,
        # from a system of S equations; the other one would take minutes and gigabytes.
        is_wide = is_alone() and 0 < len(design) < design.shape[1]
        if is_wide:
            size, gram, moment = keep.sum(), design @ design.T, target
        else:
            size, gram, moment = sums_over_ranks(keep.sum(), design.T @ design, design.T @ target)
        if size == 0:
            return {}
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        ridge = self._ridge * float(size)
        for _ in range(6):
            solution, _ = torch.linalg.solve_ex(gram + ridge * identity, moment)
            if bool(torch.isfinite(solution).all()):
                self.coefficients = design.T @ solution if is_wide else solution
                break
            ridge *= 10
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.coefficients is None else {"coefficients": self.coefficients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficients = state.get("coefficients")


class NetworkValue(StateValue):
    """V(s) by the last output of a network.

    Args:
        network: features `[..., F]` to outputs `[..., num_outputs]`, and a carry.
        features: packed observations `[..., *O]` to features `[..., F]`; the policy's, so that
            both see the same normalized numbers.
    """

    def __init__(self, network: Network, features: Callable[[Tensor], Tensor]) -> None:
        self.network, self._features = network, features

    @abstractmethod
    def _carry_before(self, rollout: Rollout) -> Carry:
        """With memory, the carry `[N, ...]` before the rollout's first step; None: zeros."""

    @torch.no_grad()
    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        if self.network.memory is None:
            values = [self.value(obs) for (obs,) in chunks(rollout.obs.flatten(0, 1))]
            value = torch.cat(values).view(rollout.obs.shape[:2])  # [T + 1, N]
            return value[:-1], rollout.successor(value, self.value(rollout.final_obs))
        value, final, _ = self._in_order(rollout)
        return value[:-1], rollout.successor(value, final)

    def value(self, obs: Tensor) -> Tensor:
        """V `[...]` of observations `[..., *O]`, differentiable in them; not with memory."""
        value: Tensor = self.network(self._features(obs))[0]  # [..., num_outputs]
        return value[..., -1]

    @torch.no_grad()
    def _in_order(self, rollout: Rollout) -> tuple[Tensor, Tensor, Carry]:
        """With memory: values `[T + 1, N]` of obs, `[K]` of final_obs, the carry before obs[T]."""
        network, memory = self.network, self.network.memory
        assert memory is not None
        inputs = network.encode(self._features(rollout.obs))  # [T + 1, N, E]
        last_inputs = network.encode(self._features(rollout.final_obs))  # [K, E]
        final = rollout.reward.new_zeros(len(rollout.final_step))  # [K]
        values, before, num_steps = [], None, len(rollout.reward)
        carry = self._carry_before(rollout)
        for stop, outputs, after in memory.stretches(
            inputs, carry, rollout.episode_start, cut=num_steps
        ):
            values.append(network.mlp(outputs)[..., -1])
            if stop == num_steps:
                before = after
            # An episode ends where a stretch does, so its last observation follows this carry.
            ended = (rollout.final_step == stop - 1).nonzero()[:, 0]  # [k]
            if len(ended):
                envs = rollout.final_env[ended]
                own = map_carry(lambda part: part[envs], after)  # noqa: B023 (used at once)
                shown, _ = memory(last_inputs[ended].unsqueeze(0), own, None)
                final[ended] = network.mlp(shown)[0, :, -1]
        return torch.cat(values), final, before


class SharedValue(NetworkValue):
    """V(s) by the policy's network, which learns it with the policy: see `Learner.objective`."""

    def _carry_before(self, rollout: Rollout) -> Carry:
        return rollout.carry


class ValueNetwork(NetworkValue):
    """V(s) by a network, regressed on the returns by Adam.

    A network with memory sees the observations in their order, from a carry of its own that goes
    on from rollout to rollout.

    Args:
        network, features: see `NetworkValue`.
        learning_rate: Adam's.
        num_epochs, num_minibatches: passes over the batch per update, and gradient steps in each.
        clip_range: a value may leave the one before the first update by a rollout by no more than
            this without losing its gradient (Schulman et al. 2017, as in their code).
        generator: shuffles the minibatches.
    """

    def __init__(
        self,
        network: Network,
        features: Callable[[Tensor], Tensor],
        *,
        learning_rate: float = 1e-3,
        num_epochs: int = 1,
        num_minibatches: int | Literal["auto"] = 1,
        clip_range: float | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__(network, features)
        self._num_epochs, self._num_minibatches = num_epochs, num_minibatches
        self._clip_range = clip_range
        self._generator = generator
        self._optimizer = Optimizer(
            network.named_parameters(),
            learning_rate=learning_rate,
            max_grad_norm=MAX_GRAD_NORM,
            owner="value network",
        )
        self._carry: Carry = None  # [N, ...] before the next rollout
        self._old: tuple[Rollout, Tensor] | None = None  # its values [T, N] before it was seen

    def _carry_before(self, rollout: Rollout) -> Carry:
        # That which the rollout before ended with, if it was of as many environments.
        parts, place = carry_parts(self._carry), rollout.reward.device
        fits = bool(parts) and len(parts[0]) == rollout.reward.shape[1]
        return map_carry(lambda part: part.to(place), self._carry) if fits else None

    def update(  # type: ignore[override]  # the samples of a learner are a rollout
        self, samples: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Minimize the squared error to `returns`, where the weight is positive."""
        keep = weight > 0
        select = rows(keep)
        own = len(select(returns))
        if not int(sum_over_ranks(torch.tensor(own))):
            return {}
        if self._clip_range is not None and (self._old is None or self._old[0] is not samples):
            self._old = samples, self.predict(samples)[0]
        old = returns if self._old is None else self._old[1]
        parts = select(samples.obs[:-1]), select(returns), select(old)  # [S, *O], [S], [S]
        carry, has_memory = self._carry_before(samples), self.network.memory is not None
        at = places(keep, own, lambda num_envs: [slice(num_envs)], in_order=has_memory)
        for _ in range(self._num_epochs):
            order, cuts = self._cut(at, len(returns) if has_memory else None)
            order = None if order is None else order.to(keep.device)
            laid = parts if has_memory or order is None else tuple(part[order] for part in parts)
            for cut, size in cuts:
                if has_memory:
                    envs = cut if order is None else order[cut]
                    loss, gradient = self._gradient_in_order(
                        samples, envs, carry, keep, returns, old
                    )
                else:
                    loss, gradient = self._gradient(*(part[cut] for part in laid), size=size)
                self._optimizer.step(sum_over_ranks(gradient), lr_scale)
        return self._optimizer.read({"train/value_loss": loss.double() * num_ranks()})

    def refuse_unregistered(self, obs: Tensor) -> None:
        if self.network.memory is None:
            known = [*self.network.parameters(), *leaves_of(self._features(obs))]
            refuse_unregistered(self.value(obs), known, "value network")

    def advance(self, rollout: Rollout) -> None:
        self._old = None
        if self.network.memory is not None:
            self._carry = self._in_order(rollout)[2]

    def _gradient(
        self, obs: Tensor, target: Tensor, old: Tensor, *, size: int
    ) -> tuple[Tensor, Tensor]:
        """The sum of S squared errors over `size`, and the gradient `[P]` of its negative."""
        total, gradient = torch.zeros(()), torch.zeros(())
        for seen, wanted, before in chunks(obs, target, old):
            loss = squares(self.value(seen), wanted, before, self._clip_range).sum() / size
            gradient = self._optimizer.own_gradient(-loss) + gradient
            total = loss.detach() + total
        return total, gradient

    def _gradient_in_order(
        self,
        rollout: Rollout,
        envs: Tensor | slice,
        carry: Carry,
        keep: Tensor,
        target: Tensor,
        old: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`_gradient` of some environments' sequences; keep, target and old are `[T, N]`."""
        outputs, _ = self.network(
            self._features(rollout.obs[:-1, envs]),
            map_carry(lambda part: part[envs], carry),
            rollout.episode_start[:-1, envs],
        )
        parts = outputs[..., -1], target[:, envs], old[:, envs]  # [T, n]
        counts = keep[:, envs]
        size = sum_over_ranks(counts.sum()).clamp(min=1)
        loss = torch.where(counts, squares(*parts, self._clip_range), 0.0).sum() / size
        return loss.detach(), self._optimizer.own_gradient(-loss)

    def compile(self) -> None:
        self.network.compile(dynamic=True)

    def _cut(
        self, places: Places, length: int | None
    ) -> tuple[Tensor | None, list[tuple[slice, int]]]:
        """A random order of this rank's samples, or sequences of this length; and where each
        minibatch is in it, with the number that all ranks have in the minibatch. None: no order."""
        number = places.number
        count = rules.num_minibatches(self._num_minibatches, number, length)
        if count == 1:
            return None, [(slice(None), number)]
        size = -(-number // count)
        bounds = [*range(0, number, size), number]
        order, cuts = shuffled(places, bounds, self._generator)
        pairs = zip(pairwise(bounds), pairwise(cuts), strict=True)
        return order, [(slice(a, b), stop - start) for (start, stop), (a, b) in pairs]

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and carry; the shuffling stream belongs to the learner."""
        state = {"network": module_state(self.network), "optimizer": self._optimizer.state_dict()}
        parts = [gather_columns(part) for part in carry_parts(self._carry)]
        return state | ({"carry": parts} if parts else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        carry = tuple(own_columns(part) for part in state.get("carry", ()))
        self._carry = carry[0] if len(carry) == 1 else carry or None


def squares(value: Tensor, target: Tensor, old: Tensor, clip_range: float | None) -> Tensor:
    """Squared errors `[...]` of the value or, where that is worse, of the value clipped to within
    `clip_range` (None: anywhere) of the old one, from before the update."""
    square = (value - target).square()
    if clip_range is None:
        return square
    clipped = old + (value - old).clamp(-clip_range, clip_range)
    return torch.maximum(square, (clipped - target).square())


def make_baseline(
    baseline: str | Baseline, policy: Policy, settings: LearnerSettings, generator: torch.Generator
) -> Baseline:
    """The baseline of that name, or the one given; the settings are the value network's.

    Raises:
        UsageError: there is none of that name.
    """
    if isinstance(baseline, Value):
        made = baseline.net
    elif isinstance(baseline, Baseline):
        return baseline
    elif baseline == "linear":
        return LinearValue(policy.features)
    elif baseline in STATISTICAL:
        return STATISTICAL[baseline]()
    elif baseline != "value":
        known = ", ".join([*STATISTICAL, *PREDICTING])
        raise UsageError(f"baseline: expected {known} or an rlpg.Baseline, got {baseline!r}")
    elif policy.shared_network is not None:
        return SharedValue(policy.shared_network, policy.features)
    else:
        hidden = None if settings.value_hidden == "auto" else settings.value_hidden
        seed = generator.initial_seed()  # of layers of the user's, which take no generator
        with global_generator_from(torch.Generator().manual_seed(seed)):
            made = policy.make_critic(hidden=hidden, generator=generator)
    if isinstance(made, Network) and not isinstance(baseline, Value):
        network = made
    else:
        network = Network(policy.observations, 1, factory=lambda *_: made, generator=generator)
    refuse_unusable(network, "value network")
    return ValueNetwork(
        network.to(policy.device),
        policy.features,
        learning_rate=settings.value_learning_rate,
        num_epochs=settings.num_value_passes,
        num_minibatches=settings.num_value_minibatches,
        clip_range=getattr(settings, "value_clip_range", None),
        generator=generator,
    )


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state, which further training leaves alone."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def chunks(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same samples of every part `[S, ...]`, as many as go through a network at once.

    On a CPU a few thousand, whose activations stay in the cache (and out of the peak of memory);
    elsewhere all of them, because there every launch costs.
    """
    if len(parts[0]) <= CHUNK or parts[0].device.type != "cpu":
        return iter([parts])
    return zip(*(part.split(CHUNK) for part in parts), strict=True)
