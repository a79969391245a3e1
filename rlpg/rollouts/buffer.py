"""A rollout while it is collected, and what is made of it afterwards.

`RolloutBuffer` is written once per step; `assemble` turns it into a `Rollout` on whole `[T, N]`
arrays: which slots are real, where each step stands in its episode, and the episodes that ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpg.errors import EnvironmentFault
from rlpg.policies.networks import Carry
from rlpg.policies.observations import Observations
from rlpg.rollouts.rollout import Episodes, Rollout
from rlpg.rollouts.shared import Outcomes


@dataclass(frozen=True)
class RunningEpisodes:
    """What the unfinished episodes have amounted to so far."""

    returns: np.ndarray  # [N] float64
    lengths: np.ndarray  # [N] int64

    @staticmethod
    def none(num_envs: int) -> RunningEpisodes:
        """No episode has begun."""
        return RunningEpisodes(np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64))


class RolloutBuffer:
    """Preallocated `[T, N]` tensors, written once per step, and numpy arrays of the same memory."""

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        observations: Observations,
        action_shape: tuple[int, ...],
        action_dtype: torch.dtype,
    ) -> None:
        self.capacity = num_steps
        self.num_envs = num_envs
        self._obs = torch.empty(
            (num_steps + 1, num_envs, *observations.shape), dtype=observations.torch_dtype
        )  # [T + 1, N, *O]
        self._action = torch.empty((num_steps, num_envs, *action_shape), dtype=action_dtype)
        self.obs, self.action = self._obs.numpy(), self._action.numpy()
        self.reward = np.empty((num_steps, num_envs))  # float64: returns are summed from it
        self.terminated = np.empty((num_steps, num_envs), dtype=bool)
        self.truncated = np.empty((num_steps, num_envs), dtype=bool)
        self.final: list[tuple[int, np.ndarray, np.ndarray]] = []  # (t, [K] envs, [K, *O] obs)

    def grow(self) -> None:
        """Doubles the capacity."""
        # A tensor that inference_mode makes could not be saved for a backward pass.
        with torch.inference_mode(False):
            self._obs = torch.cat([self._obs, torch.empty_like(self._obs[1:])])
            self._action = torch.cat([self._action, torch.empty_like(self._action)])
        self.obs, self.action = self._obs.numpy(), self._action.numpy()
        self.reward = np.concatenate([self.reward, np.empty_like(self.reward)])
        self.terminated = np.concatenate([self.terminated, np.empty_like(self.terminated)])
        self.truncated = np.concatenate([self.truncated, np.empty_like(self.truncated)])
        self.capacity *= 2

    def tensors(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """Observations `[T + 1, N, *O]` and actions `[T, N, *A]` of the first T steps."""
        return self._obs[: num_steps + 1], self._action[:num_steps]

    def put_outcome(self, t: int, reward: Any, terminated: Any, truncated: Any) -> np.ndarray:
        """Writes what the environments paid and whether they ended; returns the ends, `[N]` bool.

        Raises:
            EnvironmentFault: not one number or flag per environment.
        """
        if not self._fits(reward, "fiub"):
            raise _unfit("reward", self.num_envs, "numbers", reward)
        if not self._fits(terminated, "b"):
            raise _unfit("terminated", self.num_envs, "booleans", terminated)
        if not self._fits(truncated, "b"):
            raise _unfit("truncated", self.num_envs, "booleans", truncated)
        self.reward[t] = reward
        self.terminated[t] = terminated
        self.truncated[t] = truncated
        ended: np.ndarray = terminated | truncated
        return ended

    def _fits(self, value: Any, kinds: str) -> bool:
        """Whether it is one entry per environment, of these numpy kinds."""
        return (
            isinstance(value, np.ndarray)
            and value.shape == (self.num_envs,)
            and value.dtype.kind in kinds
        )

    def put_block(self, start: int, found: Outcomes) -> None:
        """Writes the outcomes of several steps, `[T, N, ...]`, whose ends were SAME_STEP."""
        steps = slice(start, start + len(found.reward))
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported
            self.obs[start + 1 : steps.stop + 1] = found.obs
        self.reward[steps] = found.reward
        self.terminated[steps] = found.terminated
        self.truncated[steps] = found.truncated
        ended = found.terminated | found.truncated  # [T, N]
        for t in np.flatnonzero(ended.any(axis=1)):
            rows = np.flatnonzero(ended[t])
            with np.errstate(over="ignore"):
                last = found.final[t, rows].astype(self.obs.dtype)
            self.put_final(start + int(t), rows, last)

    def put_final(self, t: int, envs: np.ndarray, obs: np.ndarray) -> None:
        """Keeps last observations `[K, *O]` that `obs[t + 1]` does not hold."""
        self.final.append((t, envs, obs))


def assemble(
    buffer: RolloutBuffer,
    num_steps: int,
    ended_before: np.ndarray,
    running: RunningEpisodes,
    *,
    reset_takes_a_step: bool,
    quota: int | None,
    first_step: int,
    carry: Carry = None,
) -> tuple[Rollout, RunningEpisodes]:
    """The rollout of the first T slots, and the episodes that are still running after it.

    Args:
        buffer: T steps of it filled.
        num_steps: T.
        ended_before: `[N]` bool, an episode ended in the step before the first slot.
        running: the episodes that reach into the first slot.
        reset_takes_a_step: the slot after an end is no transition (NEXT_STEP).
        quota: episodes per environment after which its slots are not valid.
        first_step: number of the first slot, for messages.
        carry: of the policy, before the first slot.

    Raises:
        EnvironmentFault: a number that is not finite, or an end in a slot that only resets.
    """
    reward = buffer.reward[:num_steps]  # [T, N]
    terminated = buffer.terminated[:num_steps]
    truncated = buffer.truncated[:num_steps]
    done = terminated | truncated
    resets = np.zeros_like(done)  # [T, N] slots that are no transition but a reset
    if reset_takes_a_step:
        resets[0] = ended_before
        resets[1:] = done[:-1]
        if (done & resets).any():
            t, n = np.argwhere(done & resets)[0]
            raise EnvironmentFault(
                f"step {first_step + t}, environment {n}: expected a NEXT_STEP environment to "
                "reset in the step after an end, got another end; is its metadata right?"
            )
    valid = ~resets
    if quota is not None:
        valid &= np.cumsum(done, axis=0) - done < quota
        done &= valid
        terminated = terminated & valid
        truncated = truncated & valid
    np.copyto(reward, 0.0, where=~valid)
    check_finite(buffer, num_steps, first_step)
    step, env, final_obs = _final(buffer, valid)
    episodes, still_running, time = _cut(reward, done, resets, running)
    episode_start = np.empty((num_steps + 1, done.shape[1]), dtype=bool)
    episode_start[:-1] = time == 0  # -1 in a slot that only resets
    episode_start[-1] = resets[-1] if reset_takes_a_step else done[-1]
    np.copyto(time, 0, where=~valid)
    obs, action = buffer.tensors(num_steps)
    rollout = Rollout(
        obs=obs,
        action=action,
        log_prob=None,
        reward=torch.from_numpy(reward.astype(np.float32)),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated & ~terminated),  # both at once: termination
        valid=torch.from_numpy(valid),
        time=torch.from_numpy(time),
        episode_start=torch.from_numpy(episode_start),
        carry=carry,
        final_obs=final_obs,
        final_step=torch.from_numpy(step),
        final_env=torch.from_numpy(env),
        episodes=episodes,
    )
    return rollout, still_running


def _cut(
    reward: np.ndarray, done: np.ndarray, resets: np.ndarray, running: RunningEpisodes
) -> tuple[Episodes, RunningEpisodes, np.ndarray]:
    """Cuts every environment's row of steps after each end: P pieces, each of one episode.

    Each piece is summed by itself: differences of one long running sum would lose the digits of a
    small episode behind a large one.

    Returns:
        The episodes that ended, in the order of their ends; those that still run; and `[T, N]`
        the index of every step within its episode.
    """
    num_steps, num_envs = done.shape
    size = num_envs * num_steps
    first = np.ones((num_envs, num_steps), dtype=bool)  # [N, T] a piece begins
    first[:, 1:] = done[:-1].T
    start = np.flatnonzero(first)  # [P] in the rows laid end to end
    end = np.append(start[1:], size) - 1
    env, step = end // num_steps, end % num_steps
    # Steps of the piece's episode before `start`: those of earlier rollouts, or minus one for the
    # slot in which it was reset.
    before = -resets[start % num_steps, env].astype(np.int64)
    head = np.flatnonzero(start % num_steps == 0)  # the N pieces that come first in their rows
    before[head] += running.lengths
    length = end - start + 1
    time = np.arange(size) - np.repeat(start - before, length)
    sums = np.add.reduceat(reward.T.reshape(size), start)
    sums[head] += running.returns
    length += before
    over = done[step, env]
    order = np.argsort((step * num_envs + env)[over])
    ended = Episodes(*(value[over][order] for value in (sums, length, env, step)))
    last = step == num_steps - 1
    still = RunningEpisodes(
        returns=np.where(over, 0.0, sums)[last], lengths=np.where(over, 0, length)[last]
    )
    return ended, still, time.reshape(num_envs, num_steps).T.copy()


def _final(buffer: RolloutBuffer, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """`[K]` steps, `[K]` environments and `[K, *O]` last observations of valid episodes."""
    if not buffer.final:
        none = np.zeros(0, dtype=np.int64)
        return none, none, torch.from_numpy(np.empty((0, *buffer.obs.shape[2:]), buffer.obs.dtype))
    step = np.concatenate([np.full(len(envs), t) for t, envs, _ in buffer.final])
    env = np.concatenate([envs for _, envs, _ in buffer.final])
    obs = np.concatenate([last for _, _, last in buffer.final])
    keep = valid[step, env]
    return step[keep], env[keep], torch.from_numpy(obs[keep])


def check_finite(buffer: RolloutBuffer, num_steps: int, first_step: int) -> None:
    """Raises EnvironmentFault on the first number in T slots that is not finite in float32."""
    wrong: list[tuple[int, int, str]] = []  # step, environment, what
    with np.errstate(over="ignore"):
        reward = buffer.reward[:num_steps].astype(np.float32)
    if not np.isfinite(reward).all():
        t, n = np.argwhere(~np.isfinite(reward))[0].tolist()
        paid = buffer.reward[t, n]
        wrong.append((t, n, f"reward: expected a finite float32, got {paid}"))
    obs = buffer.obs[: num_steps + 1]
    if obs.dtype.kind == "f":
        if not np.isfinite(obs).all():
            t, n, *where = np.argwhere(~np.isfinite(obs))[0].tolist()
            wrong.append((t - 1, n, _not_finite(obs[(t, n, *where)], where)))
        for t, envs, last in buffer.final:
            if not np.isfinite(last).all():
                k, *where = np.argwhere(~np.isfinite(last))[0].tolist()
                wrong.append((t, int(envs[k]), _not_finite(last[(k, *where)], where)))
                break
    if wrong:
        t, n, what = min(wrong)
        raise EnvironmentFault(f"{step_name(t, first_step)}, environment {n}: {what}")


def step_name(t: int, first_step: int) -> str:
    """Where slot t + 1 of a rollout comes from; slot 0 was shown before unless a reset gave it."""
    return f"step {first_step + t}" if t >= 0 else f"reset before step {first_step}"


def _not_finite(value: float, where: list[int]) -> str:
    return f"observation: expected finite float32 numbers, got {value} at {where}"


def _unfit(name: str, num_envs: int, what: str, value: Any) -> EnvironmentFault:
    got = (
        f"{value.dtype} {list(value.shape)}"
        if isinstance(value, np.ndarray)
        else type(value).__name__
    )
    return EnvironmentFault(f"{name}: expected {num_envs} {what} in an array [N], got {got}")
