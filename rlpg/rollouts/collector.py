"""`Collector`: steps a vector environment with a policy and hands out rollouts.

The three autoreset modes of Gymnasium come out as the same rollout. What differs is where the
reset happens, and therefore which of the T x N slots are real and where the last observation of
an episode is found:

    mode       the reset happens in             slot after an end     last observation
    NEXT_STEP  the step after the end           no transition         obs[t + 1]
    SAME_STEP  the step of the end              the next episode      info["final_obs"]
    DISABLED   reset(reset_mask) by us          the next episode      what the step returned
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from rlpg.errors import EnvironmentFault, words
from rlpg.policies.fast_path import ArrayActor
from rlpg.policies.networks import Carry, carry_parts, checked_carry, map_carry
from rlpg.rollouts.base import BaseCollector, never_ends
from rlpg.rollouts.bounds import Bounds
from rlpg.rollouts.buffer import RolloutBuffer, Running, assemble, check_finite
from rlpg.rollouts.replay import restore, snapshot
from rlpg.rollouts.rollout import Rollout
from rlpg.rollouts.seeds import is_seeded, seed_streams
from rlpg.rollouts.vector import autoreset_mode, batched_mask, final_observations, remembers_ends
from rlpg.rollouts.workers import WorkerEnvs

if TYPE_CHECKING:
    from rlpg.policies import Policy

_FIRST_CHUNK = 128  # steps; episodes() does not know how long they will be, so its buffers double


class Collector(BaseCollector):
    """Collects rollouts from Gymnasium's vector environments, step by step.

    Args:
        envs: any `gymnasium.vector.VectorEnv`. If nothing has seeded it yet (`make_envs` does),
            the first reset does, from `seed`.
        policy, seed, log_prob, deterministic: see `BaseCollector`.
        warn: is told once if an observation is out of the bounds of its space; None: a Python
            warning.
    """

    _obs: np.ndarray | None = None  # [N, *O] what the next action answers; None: reset
    _running: Running
    _carry: Carry  # of the policy, [N, ...]
    _starts: np.ndarray  # [N] bool: `_obs` is the first of an episode

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        policy: Policy,
        seed: int | np.random.SeedSequence = 0,
        *,
        log_prob: bool = True,
        deterministic: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(
            envs, policy, seed,
            num_envs=envs.num_envs, log_prob=log_prob, deterministic=deterministic,
        )  # fmt: skip
        self._mode = autoreset_mode(envs)
        self._observations = policy.observations
        self._ended = np.zeros(self.num_envs, dtype=bool)  # the last step ended an episode
        self._no_episodes()
        self._warn = warn or warnings.warn
        self._bounds = Bounds(self._observations)
        self._checks_bounds = self._bounds.exist  # until there was something to say

    def _steps(self, num_steps: int) -> Rollout:
        if self._obs is None:
            self._start()
        buffer = self._buffer(num_steps)
        pool, actor = self.envs, self._act  # a wrapper around the pool wants to see each step
        if isinstance(pool, WorkerEnvs) and pool.steps_ahead and isinstance(actor, ArrayActor):
            self._run_ahead(buffer, num_steps, pool, actor)
        else:
            for t in range(num_steps):
                self._step(buffer, t)
        return self._rollout(buffer, num_steps, quota=None)

    def _episodes(self, per_env: int, max_steps: int) -> Rollout:
        self._start()
        buffer = self._buffer(_FIRST_CHUNK)
        remaining = np.full(self.num_envs, per_env)
        limit = per_env * (max_steps + 1)  # NEXT_STEP spends one step per reset
        for t in range(limit):
            if t == buffer.capacity:
                buffer.grow()
            remaining -= self._step(buffer, t)
            if remaining.max() <= 0:
                return self._rollout(buffer, t + 1, quota=per_env)
        raise never_ends(per_env - remaining, per_env, limit)

    def restart(self) -> None:
        self._obs = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "obs": None if self._obs is None else self._obs.copy(),
            "ended": self._ended.copy(),
            "returns": self._running[0].copy(),
            "lengths": self._running[1].copy(),
            "starts": self._starts.copy(),
            "carry": _carry_to_arrays(self._carry),
            "environments": snapshot(self.envs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> str:
        super().load_state_dict(state)
        self._obs = None if state["obs"] is None else np.array(state["obs"])
        self._ended = np.array(state["ended"], dtype=bool)
        self._running = np.array(state["returns"], np.float64), np.array(state["lengths"], np.int64)
        self._starts = np.array(state["starts"], dtype=bool)
        fresh, self._carry = self._carry, _carry_from_arrays(state["carry"], self._device)
        problem = restore(self.envs, state["environments"])
        if problem:
            self.restart()
            return problem
        each: tuple[int, ...] = (self.num_envs,)  # numpy would repeat one that stands for all
        shapes = dict.fromkeys(("ended", "returns", "lengths", "starts"), each)
        shapes["obs"] = each + self.policy.observations.shape
        for name, shape in shapes.items():
            if state[name] is not None and np.shape(state[name]) != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {np.shape(state[name])}")
        if _shapes(self._carry) != _shapes(fresh):
            raise ValueError(f"carry: expected {_shapes(fresh)}, got {_shapes(self._carry)}")
        return ""

    # ------------------------------------------------------------------------------- internals

    def _start(self) -> None:
        """Resets every environment; the statistics of running episodes start at zero."""
        try:
            first = not is_seeded(self.envs)
            obs, info = seed_streams(self.envs, self._seed) if first else self.envs.reset()
            self._obs = self._pack(obs, info, maskless=None)
        except Exception as error:
            where = f"reset before step {self.vector_steps}"
            raise EnvironmentFault(f"{where}: {words(error)}") from error
        if not remembers_ends(self.envs):
            self._ended = np.zeros(self.num_envs, dtype=bool)
        self._no_episodes()

    def _no_episodes(self) -> None:
        self._running = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._carry = self.policy.initial_carry(self.num_envs)
        if self._carry is not None:
            checked_carry(self._carry, self.num_envs, f"{type(self.policy).__name__}.initial_carry")
        self._starts = np.ones(self.num_envs, dtype=bool)

    def _buffer(self, num_steps: int) -> RolloutBuffer:
        buffer = RolloutBuffer(num_steps, self.num_envs, self.policy, self._ended, self._carry)
        buffer.obs[0] = self._obs
        self._act = self.policy.actor(self._drawing, self.num_envs, num_steps)
        return buffer

    def _run_ahead(
        self, buffer: RolloutBuffer, num_steps: int, pool: WorkerEnvs, actor: ArrayActor
    ) -> None:
        """Fills the rollout, each worker's environments as fast as they can."""
        obs, first, dtype = buffer.obs[0].copy(), self.vector_steps, buffer.action.dtype
        acting, start = 0.0, perf_counter()
        block = 0  # first step of those that are in the workers' memory at a time

        def act(obs: np.ndarray, steps: Sequence[tuple[int, slice]]) -> np.ndarray:
            nonlocal acting
            began = perf_counter()
            drawn = actor.at(obs, [(block + t, rows) for t, rows in steps])
            for t, rows in steps:
                buffer.action[block + t, rows] = drawn[rows]
            env_action: np.ndarray = self.policy.head.to_env(drawn.astype(dtype, copy=False))
            acting += perf_counter() - began
            return env_action

        for block in range(0, num_steps, pool.steps_ahead):
            size = min(pool.steps_ahead, num_steps - block)
            keep = partial(buffer.put_block, block, size)
            try:
                with np.errstate(over="ignore"):  # 1e39 becomes inf, which is reported
                    pool.run_ahead(obs, size, first + block, act, keep)
            except Exception:
                check_finite(buffer, block + size, first)  # what began earlier is told first
                raise
        buffer.parts = pool.reward_parts()
        self.env_seconds += perf_counter() - start - acting
        self.vector_steps += num_steps
        last = num_steps - 1
        self._ended = self._starts = buffer.terminated[last] | buffer.truncated[last]

    def _step(self, buffer: RolloutBuffer, t: int) -> np.ndarray:
        """Fills slot t of the rollout; returns `[N]` bool, whose episode ended in it."""
        starts = None if self._carry is None else torch.from_numpy(self._starts).to(self._device)
        try:
            drawn, self._carry = self._act(buffer.obs[t], self._carry, starts)  # [N, *A]
            buffer.action[t] = drawn
            env_action = self.policy.head.to_env(drawn.astype(buffer.action.dtype, copy=False))
        except Exception:
            check_finite(buffer, t, self.vector_steps - t)  # was it what the policy was shown?
            raise
        try:
            began = perf_counter()
            raw, reward, terminated, truncated, info = self.envs.step(env_action)
            self.env_seconds += perf_counter() - began
            if info:
                if not isinstance(info, dict):
                    got = type(info).__name__
                    raise EnvironmentFault(f"info: expected a dict of arrays [N], got {got}")
                buffer.parts.add(info)
            ended = buffer.put_outcome(t, reward, terminated, truncated)  # [N]
            maskless = None if self._mode is AutoresetMode.SAME_STEP else ended
            packed = self._pack(raw, info, maskless, out=buffer.obs[t + 1])  # [N, *O]
            if self._mode is not AutoresetMode.NEXT_STEP and np.count_nonzero(ended):
                self._turn_over(buffer, t, ended, packed, info)
        except Exception as error:
            check_finite(buffer, t, self.vector_steps - t)  # what began earlier is told first
            raise EnvironmentFault(f"step {self.vector_steps}: {words(error)}") from error
        self._starts = self._ended if self._mode is AutoresetMode.NEXT_STEP else ended
        self._ended = ended
        self.vector_steps += 1
        return ended

    def _turn_over(
        self, buffer: RolloutBuffer, t: int, ended: np.ndarray, packed: np.ndarray, info: Any
    ) -> None:
        """Puts the true last observations aside; `packed` is then what the policy acts on next."""
        rows = np.flatnonzero(ended)
        if self._mode is AutoresetMode.SAME_STEP:
            last = final_observations(info, rows, self._observations)
            buffer.final.append((t, rows, last))
        else:
            buffer.final.append((t, rows, packed[rows]))
            obs, info = self.envs.reset(options={"reset_mask": ended.copy()})
            packed[rows] = self._pack(obs, info, maskless=~ended)[rows]

    def _pack(
        self, obs: Any, info: Any, maskless: Any, out: np.ndarray | None = None
    ) -> np.ndarray:
        """`[N, *O]`; the environments in `maskless` `[N]` need not have given an action mask."""
        has_mask = self._observations.info_mask > 0
        mask = batched_mask(info, self.num_envs, maskless) if has_mask else None
        packed: np.ndarray = self._observations.pack(obs, self.num_envs, mask, out)
        return packed

    def _rollout(self, buffer: RolloutBuffer, num_steps: int, quota: int | None) -> Rollout:
        """The rollout of the filled slots, with everything that is computed once for all steps."""
        first = self.vector_steps - num_steps
        rollout, self._running = assemble(
            buffer,
            num_steps,
            self._running,
            reset_takes_a_step=self._mode is AutoresetMode.NEXT_STEP,
            quota=quota,
            first_step=first,
        )
        self._obs = buffer.obs[num_steps].copy()
        # What inference_mode has made cannot be saved for a backward pass; a copy can.
        if buffer.carry is not None:
            checked_carry(self._carry, self.num_envs, f"{type(self.policy).__name__}.forward")
        self._carry = map_carry(torch.clone, self._carry)
        if self._checks_bounds and (remark := self._bounds.remark(rollout, first)):
            self._checks_bounds = False
            self._warn(remark)
        return rollout


def _carry_to_arrays(carry: Carry) -> Any:
    """The carry as plain data: None, an array, or a list of arrays for a tuple."""
    if isinstance(carry, tuple):
        return [_carry_to_arrays(part) for part in carry]
    return None if carry is None else carry.cpu().numpy().copy()


def _shapes(carry: Carry) -> list[Any]:
    return [tuple(part.shape) for part in carry_parts(carry)]


def _carry_from_arrays(arrays: Any, device: torch.device) -> Any:
    if isinstance(arrays, list | tuple):
        return tuple(_carry_from_arrays(array, device) for array in arrays)
    return None if arrays is None else torch.from_numpy(np.array(arrays)).to(device)
