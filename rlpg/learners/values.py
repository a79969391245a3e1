"""Baselines that predict the value of any state: a linear fit and a value network."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlpg.errors import NumericalFault, UsageError
from rlpg.gradients.baselines import STATISTICAL, Baseline, Value
from rlpg.learners.adam import Adam, flat_gradient
from rlpg.policies import Network, Policy
from rlpg.rollouts.rollout import Rollout, rows

PIECE = 2048  # samples
MAX_GRAD_NORM = 1.0  # of the value network: an outlier return moves it by no more than others


class StateValue(Baseline):
    """A baseline that knows the value of any state, so returns can be bootstrapped with it."""

    @abstractmethod
    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """`(value, successor_value)`, each `[T, N]`: V at `obs[t]` and at its true successor."""

    def __call__(  # type: ignore[override]  # observations are in a rollout only
        self, rollout: Rollout, returns: Tensor
    ) -> Tensor:
        return self.predict(rollout)[0]


class LinearValue(StateValue):
    """V(s, t) = w . [o, o^2, t/100, (t/100)^2, (t/100)^3, 1], fitted by ridge regression.

    Source: Duan et al. 2016, "Benchmarking Deep Reinforcement Learning", appendix 2. Fitted on the
    previous batch, so it is 0 for the first one.

    Args:
        observe: packed observations `[..., *O]` to features `[..., F]`.
        ridge: weight of |w|^2 per sample; raised tenfold until the solution is finite.
    """

    def __init__(self, observe: Callable[[Tensor], Tensor], *, ridge: float = 1e-5) -> None:
        self._observe = observe
        self._ridge = ridge
        self.coefficients: Tensor | None = None  # [2 F + 4] float64

    def _design(self, obs: Tensor, time: Tensor) -> Tensor:
        features = self._observe(obs).double().clamp(-10, 10)  # [..., F]
        t = time.double().unsqueeze(-1) / 100  # [..., 1]
        return torch.cat([features, features**2, t, t**2, t**3, torch.ones_like(t)], dim=-1)

    @torch.no_grad()
    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """`(value, successor_value)`, each `[T, N]`."""
        if self.coefficients is None:
            return torch.zeros_like(rollout.reward), torch.zeros_like(rollout.reward)
        weights = self.coefficients
        value = self._design(rollout.obs[:-1], rollout.time) @ weights  # [T, N]
        # A successor's clock is one step on, whatever the reset did to the next slot.
        after = self._design(rollout.obs[1:], rollout.time + 1) @ weights  # [T, N]
        time = rollout.time[rollout.final_step, rollout.final_env] + 1  # [K]
        after[rollout.final_step, rollout.final_env] = (
            self._design(rollout.final_obs, time) @ weights
        )
        return value.float(), after.float()

    @torch.no_grad()
    def update(  # type: ignore[override]
        self, rollout: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Refit on this batch alone."""
        keep = weight > 0
        design = self._design(rollout.obs[:-1], rollout.time)[keep]  # [S, 2 F + 4]
        target = returns[keep].double()  # [S]
        if len(target) == 0:
            return {}
        gram, moment = design.T @ design, design.T @ target
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        ridge = self._ridge * len(target)
        for _ in range(6):
            solution, _ = torch.linalg.solve_ex(gram + ridge * identity, moment)
            if bool(torch.isfinite(solution).all()):
                self.coefficients = solution
                break
            ridge *= 10
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The coefficients, or nothing before the first update."""
        return {} if self.coefficients is None else {"coefficients": self.coefficients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.coefficients = state.get("coefficients")


class ValueNetwork(StateValue):
    """V(s) by a network, regressed on the returns by Adam.

    Args:
        network: features `[..., F]` to `[..., 1]`.
        observe: packed observations `[..., *O]` to features `[..., F]`; the policy's, so that both
            see the same normalized numbers.
        learning_rate: Adam's learning rate.
        epochs: passes over the batch per update.
        minibatches: optimizer steps per pass; 1 is full batch.
        generator: shuffles the minibatches.
    """

    def __init__(
        self,
        network: nn.Module,
        observe: Callable[[Tensor], Tensor],
        *,
        learning_rate: float = 1e-3,
        epochs: int = 1,
        minibatches: int = 1,
        generator: torch.Generator,
    ) -> None:
        self.network = network
        self._observe = observe
        self._learning_rate, self._epochs, self._minibatches = learning_rate, epochs, minibatches
        self._generator = generator
        self._parameters = list(network.parameters())
        self._optimizer = Adam(self._parameters)

    def _value(self, obs: Tensor) -> Tensor:
        value: Tensor = self.network(self._observe(obs))  # [..., 1]
        return value.squeeze(-1)

    @torch.no_grad()
    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """`(value, successor_value)`, each `[T, N]`."""
        values = [self._value(obs) for (obs,) in pieces(rollout.obs.flatten(0, 1))]
        value = torch.cat(values).view(rollout.obs.shape[:2])  # [T + 1, N]
        return value[:-1], rollout.successor(value, self._value(rollout.final_obs))

    def update(  # type: ignore[override]
        self, rollout: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Minimize the squared error to `returns`, where the weight is positive."""
        slots = rows(weight > 0)
        obs, target = slots(rollout.obs[:-1]), slots(returns)  # [S, *O], [S]
        if len(target) == 0:
            return {}
        loss = torch.zeros(())
        for _ in range(self._epochs):
            for batch in self._batches(len(target)):
                loss, gradient = self._gradient(obs[batch], target[batch])
                norm = float(gradient.norm())
                if not norm < math.inf:
                    raise NumericalFault(
                        "value network: expected a finite gradient, got nan or inf; look at the "
                        "rewards, or lower learner.value_learning_rate"
                    )
                if norm > MAX_GRAD_NORM:
                    gradient *= MAX_GRAD_NORM / norm
                self._optimizer.step(gradient, self._learning_rate * lr_scale)
        return {"train/value_loss": loss.item()}

    def _gradient(self, obs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared error, detached, and its gradient `[P]`."""
        total, gradient = torch.zeros(()), torch.zeros(())
        for seen, wanted in pieces(obs, target):
            loss = (self._value(seen) - wanted).square().sum() / len(target)
            gradient = flat_gradient(loss, self._parameters) + gradient
            total = loss.detach() + total
        return total, gradient

    def compile(self) -> None:
        """Compile the network."""
        self.network.compile(dynamic=True)

    def _batches(self, size: int) -> list[Tensor] | list[slice]:
        if self._minibatches == 1:
            return [slice(None)]
        order = torch.randperm(size, generator=self._generator)
        return list(order.chunk(self._minibatches))

    def state_dict(self) -> dict[str, Any]:
        """Network and optimizer; the shuffling stream belongs to the learner."""
        return {
            "network": module_state(self.network),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def make_baseline(
    name: str | Value,
    policy: Policy,
    *,
    hidden: Sequence[int],
    learning_rate: float,
    epochs: int,
    minibatches: int,
    generator: torch.Generator,
) -> Baseline:
    """The baseline of that name, or the value network with that net; the options are its own.

    Raises:
        UsageError: there is none of that name.
    """
    if isinstance(name, Value) or name == "value":
        network = (
            name.net
            if isinstance(name, Value)
            else Network(policy.observations, 1, hidden=hidden, generator=generator)
        )
        network.to(next(policy.parameters()).device)
        return ValueNetwork(
            network,
            policy.features,
            learning_rate=learning_rate,
            epochs=epochs,
            minibatches=minibatches,
            generator=generator,
        )
    if name == "linear":
        return LinearValue(policy.features)
    if name in STATISTICAL:
        return STATISTICAL[name]()
    known = ", ".join([*STATISTICAL, "linear", "value"])
    raise UsageError(f"baseline: expected one of {known}, got {name!r}")


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state, which further training leaves alone."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def pieces(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same samples of every part `[S, ...]`, as many as go through a network at once.

    On a CPU a few thousand, whose activations stay in the cache (and out of the peak of memory);
    elsewhere all of them, because there every launch costs.
    """
    if len(parts[0]) <= PIECE or parts[0].device.type != "cpu":
        return iter([parts])
    return zip(*(part.split(PIECE) for part in parts), strict=True)
