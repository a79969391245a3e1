"""`TensorCollector`: environments, policy and rollout on one device, without a trip to NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlpg.errors import EnvironmentFault, UsageError
from rlpg.policies.distributions import checked_log_prob
from rlpg.rollouts.graphs import Replayed
from rlpg.rollouts.rollout import Episodes, Rollout

if TYPE_CHECKING:
    from rlpg.policies import Policy

_STARTS = 0x737461  # keeps the stream of first states apart from that of the actions


class TensorEnv(Protocol):
    """An environment as functions of tensors; `rlpg.envs.batched.Batched` says it in full."""

    observation_space: Any
    action_space: Any
    max_episode_steps: int
    num_uniforms: int

    def start(self, uniform: Tensor) -> Tensor:
        """States `[N, S]` at the start of episodes, for uniform `[N, U]` in [0, 1)."""
        ...

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """State `[N, S]`, reward `[N]`, terminated `[N]`, of state `[N, S]`, action `[N, *A]`."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Observations `[N, *O]` of states `[N, S]`."""
        ...


class TensorCollector:
    """Collects rollouts on the policy's device; `Collector` for environments made of tensors.

    The rollouts are those of `Collector`, with tensors on that device: an episode that ends is
    replaced within the step. Nothing waits for the device before the T steps are done; then the
    ends are counted, and their statistics cross to NumPy in one copy. On CUDA the T steps are one
    graph (see `graphs.py`).

    Args:
        env: the environment, as functions of tensors.
        policy: draws the actions; on its device before the collector is made.
        seed: of the actions, and of how episodes start.
        num_envs: N.
        dtype: of the environments' state.
        log_prob: whether rollouts carry `log_prob`.
        deterministic: take the policy's deterministic action (`Policy.mode`) instead of a draw.

    Raises:
        UsageError: the policy was made for other observations or actions.
    """

    def __init__(
        self,
        env: TensorEnv,
        policy: Policy,
        seed: int | np.random.SeedSequence = 0,
        *,
        num_envs: int,
        dtype: torch.dtype = torch.float32,
        log_prob: bool = True,
        deterministic: bool = False,
    ) -> None:
        if num_envs < 1:
            raise UsageError(f"num_envs: expected at least 1, got {num_envs}")
        expected, got = policy.observations.space, env.observation_space
        if expected != got or policy.observations.info_mask:
            raise UsageError(f"policy: expected observations {got} without a mask, got {expected}")
        if policy.has_memory:
            raise UsageError("policy: expected one without memory, got one with; use Collector")
        if policy.head.space != env.action_space:
            raise UsageError(f"policy: expected {env.action_space}, got {policy.head.space}")
        self.env = env
        self.policy = policy
        self.num_envs = num_envs
        self.env_steps = 0  # transitions so far
        self.vector_steps = 0  # steps of all environments at once so far
        self._log_prob = log_prob
        self._deterministic = deterministic
        self._device = policy.device
        self._dtype = dtype
        self._to_env = policy.head.to_env_on(self._device)
        run = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        starts = np.random.SeedSequence(run.entropy, spawn_key=(*run.spawn_key, _STARTS))
        self._generator, self._starts = (_stream(source, self._device) for source in (run, starts))
        self._standing: _Standing | None = None
        self._slots: _Slots | None = None
        self._work: Replayed | None = None
        self._was_identity = False  # the work was recorded while the normalizer did nothing

    def steps(self, num_steps: int) -> Rollout:
        """The next `num_steps` steps of every environment; episodes run on into the next call.

        Raises:
            EnvironmentFault: a number that is not finite, with its step and environment.
        """
        if num_steps < 1:
            raise UsageError(f"steps: expected at least 1, got {num_steps}")
        if self._standing is None:
            self._standing = self._begin()
        slots, work = self._prepared(num_steps, self._standing)
        with torch.inference_mode():
            work()
        rollout = self._rollout(slots)
        self.vector_steps += num_steps
        self.env_steps += num_steps * self.num_envs
        return rollout

    def restart(self) -> None:
        """Makes the next rollout begin with a reset; running episodes are dropped."""
        self._standing = self._work = None

    def state_dict(self) -> dict[str, Any]:
        """All that decides what is collected next, but the policy: plain values, numpy arrays."""
        standing = None if self._standing is None else vars(self._standing)
        return {
            "env_steps": self.env_steps,
            "vector_steps": self.vector_steps,
            "generator": self._generator.get_state().numpy().copy(),
            "starts": self._starts.get_state().numpy().copy(),
            "standing": standing and {k: v.cpu().numpy().copy() for k, v in standing.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of a collector made as this one."""
        self.env_steps = int(state["env_steps"])
        self.vector_steps = int(state["vector_steps"])
        for generator, name in ((self._generator, "generator"), (self._starts, "starts")):
            generator.set_state(torch.from_numpy(np.array(state[name], dtype=np.uint8)))
        self.restart()
        if state["standing"] is not None:
            arrays = {k: torch.from_numpy(np.array(v)) for k, v in state["standing"].items()}
            self._standing = _Standing(**{k: v.to(self._device) for k, v in arrays.items()})

    # ------------------------------------------------------------------------------- internals

    def _begin(self) -> _Standing:
        shape = (self.num_envs, self.env.num_uniforms)
        uniform = torch.empty(shape, dtype=self._dtype, device=self._device)
        return _Standing(
            state=self.env.start(uniform.uniform_(generator=self._starts)),
            returns=torch.zeros(self.num_envs, dtype=torch.float64, device=self._device),
            lengths=torch.zeros(self.num_envs, dtype=torch.int64, device=self._device),
        )

    def _prepared(self, num_steps: int, standing: _Standing) -> tuple[_Slots, Replayed]:
        """Fixed memory for T steps, and the work that fills it; kept while nothing changes."""
        normalizer = self.policy.normalizer
        # An untrained normalizer leaves its work out, and what was recorded then stays without it.
        is_identity = normalizer is not None and normalizer.is_identity
        slots, work = self._slots, self._work
        if slots is None or len(slots.reward) != num_steps:
            slots, work = self._new_slots(num_steps), None
        if work is None or is_identity != self._was_identity:
            generators = (self._generator, self._starts)
            filled = slots  # for the closure
            work = Replayed(lambda: self._fill(filled, standing), self._device, generators)
        self._slots, self._work, self._was_identity = slots, work, is_identity
        return slots, work

    def _new_slots(self, num_steps: int) -> _Slots:
        head, observations = self.policy.head, self.policy.observations

        def memory(dtype: torch.dtype, *shape: int, extra: int = 0) -> Tensor:
            size = (num_steps + extra, self.num_envs, *shape)
            return torch.empty(size, dtype=dtype, device=self._device)

        return _Slots(
            uniform=memory(self._dtype, self.env.num_uniforms),
            obs=memory(observations.torch_dtype, *observations.shape, extra=1),
            last_obs=memory(observations.torch_dtype, *observations.shape),
            action=memory(head.action_dtype, *head.action_shape),
            reward=memory(torch.float32),
            terminated=memory(torch.bool),
            truncated=memory(torch.bool),
            returns=memory(torch.float64),
            lengths=memory(torch.int64),
        )

    def _fill(self, slots: _Slots, standing: _Standing) -> None:
        """T steps. Launches work and waits for none of it; the memory it touches is fixed."""
        env, policy, limit = self.env, self.policy, self.env.max_episode_steps
        state, returns, lengths = standing.state, standing.returns, standing.lengths
        slots.uniform.uniform_(generator=self._starts)
        slots.obs[0] = env.observe(state)
        for t in range(len(slots.reward)):
            obs = slots.obs[t]  # [N, *O]
            if self._deterministic:
                action, _ = policy.mode(obs)
            else:
                action, _ = policy.draw(obs, None, self._generator)
            slots.action[t] = action
            state, reward, terminated = env.step(state, self._to_env(action))
            returns, lengths = returns + reward, lengths + 1  # [N], of the running episodes
            truncated = lengths >= limit
            done = terminated | truncated
            last_obs = env.observe(state)
            slots.reward[t], slots.last_obs[t] = reward, last_obs
            slots.terminated[t], slots.truncated[t] = terminated, truncated
            slots.returns[t], slots.lengths[t] = returns, lengths
            first = env.start(slots.uniform[t])
            state = torch.where(done.unsqueeze(-1), first, state)
            slots.obs[t + 1] = env.observe(state)
            returns, lengths = returns.masked_fill(done, 0.0), lengths.masked_fill(done, 0)
        standing.state.copy_(state)
        standing.returns.copy_(returns)
        standing.lengths.copy_(lengths)

    def _rollout(self, slots: _Slots) -> Rollout:
        """The rollout in memory of its own: the slots are written again by the next one."""
        self._check_finite(slots)
        end = (slots.terminated | slots.truncated).nonzero()  # [E, 2], in the order of the ends
        step, env = end.unbind(1)
        found = [slots.returns[step, env], slots.lengths[step, env], step, env]
        returns, *counts = torch.stack([part.double() for part in found]).cpu().numpy()
        length, at, where = (part.astype(np.int64) for part in counts)
        rollout = Rollout(
            obs=slots.obs.clone(),
            action=slots.action.clone(),
            log_prob=None,
            reward=slots.reward.clone(),
            terminated=slots.terminated.clone(),
            truncated=slots.truncated & ~slots.terminated,  # both at once: termination
            valid=torch.ones_like(slots.terminated),
            time=slots.lengths - 1,
            episode_start=torch.cat(
                [slots.lengths == 1, (slots.terminated | slots.truncated)[-1:]]
            ),
            carry=None,
            final_obs=slots.last_obs[step, env],
            final_step=step,
            final_env=env,
            episodes=Episodes(returns, length, where, at),
        )
        if not self._log_prob:
            return rollout
        with torch.no_grad():
            distribution, _ = self.policy(rollout.obs[:-1])
            log_prob = checked_log_prob(distribution, rollout.action, rollout.reward.shape)
            return replace(rollout, log_prob=log_prob)

    def _check_finite(self, slots: _Slots) -> None:
        named = (("reward", slots.reward), ("observation", slots.last_obs))
        if torch.stack([values.isfinite().all() for _, values in named]).all():
            return
        wrong: list[tuple[int, int, str]] = []  # step, environment, what
        for name, values in named:
            for t, n, *where in (~values.isfinite()).nonzero()[:1].tolist():
                at = f" at {where}" if where else ""
                got = f"expected finite float32 numbers, got {float(values[(t, n, *where)])}{at}"
                wrong.append((t, n, f"{name}: {got}"))
        t, n, what = min(wrong)
        raise EnvironmentFault(f"step {self.vector_steps + t}, environment {n}: {what}")


@dataclass(frozen=True)
class _Standing:
    """Where the environments stand between two rollouts; written in place."""

    state: Tensor  # [N, S]
    returns: Tensor  # [N] float64, of the running episodes so far
    lengths: Tensor  # [N] int64


@dataclass(frozen=True)
class _Slots:
    """Memory for T steps."""

    uniform: Tensor  # [T, N, U] how an episode would start after each step
    obs: Tensor  # [T + 1, N, *O] what the policy is shown
    last_obs: Tensor  # [T, N, *O] what each step led to
    action: Tensor  # [T, N, *A]
    reward: Tensor  # [T, N] float32
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    returns: Tensor  # [T, N] float64, sum of rewards of the episode so far
    lengths: Tensor  # [T, N] int64, steps of the episode so far


def _stream(seed: np.random.SeedSequence, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(seed.generate_state(1, np.uint64)[0]))
