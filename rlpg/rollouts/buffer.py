"""A rollout while it is collected (`RolloutBuffer`), and what is made of it (`assemble`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlpg.errors import EnvironmentFault, NumericalFault
from rlpg.policies.networks import Carry, map_carry
from rlpg.rollouts.reward_parts import RewardParts
from rlpg.rollouts.rollout import Episodes, Rollout
from rlpg.rollouts.shared import SharedArrays
from rlpg.rollouts.validation import where_not_finite

if TYPE_CHECKING:
    from rlpg.policies import Policy

Running = tuple[np.ndarray, np.ndarray]
"""Of the unfinished episodes so far: returns `[N]` float64, and lengths `[N]` int64."""


class RolloutBuffer:
    """Preallocated `[T, N]` arrays, written once per step. Where torch puts them: to be the same in
    every run, the bits of a product need arrays that begin at a multiple of 64 bytes.

    Args:
        policy: which observations and actions.
        ended_before: `[N]` bool, an episode ended in the step before the first slot.
        carry: of the policy, before the first slot.
    """

    def __init__(
        self, num_steps: int, num_envs: int, policy: Policy, ended_before: np.ndarray, carry: Carry
    ) -> None:
        self.num_envs = num_envs
        self.ended_before, self.carry = ended_before, map_carry(torch.clone, carry)
        self.parts = RewardParts(num_envs)
        observations, head = policy.observations, policy.head
        shape = (num_steps + 1, num_envs, *observations.shape)  # [T + 1, N, *O]
        self.obs = torch.empty(shape, dtype=observations.torch_dtype).numpy()
        shape = (num_steps, num_envs, *head.action_shape)  # [T, N, *A]
        self.action = torch.empty(shape, dtype=head.action_dtype).numpy()
        self.reward = np.empty((num_steps, num_envs))  # float64: returns are summed from it
        self.terminated = np.empty((num_steps, num_envs), dtype=bool)
        self.truncated = np.empty((num_steps, num_envs), dtype=bool)
        # Last observations that `obs[t + 1]` does not hold: (t, [K] envs, [K, *O] obs).
        self.final = [(0, np.zeros(0, np.int64), self.obs[0, :0])]

    @property
    def capacity(self) -> int:
        return len(self.reward)

    def grow(self) -> None:
        """Doubles the capacity."""
        more = self.capacity
        for name in ("obs", "action", "reward", "terminated", "truncated"):
            array = torch.from_numpy(getattr(self, name))
            setattr(self, name, torch.cat([array, torch.empty_like(array[:more])]).numpy())

    def put_outcome(self, t: int, reward: Any, terminated: Any, truncated: Any) -> np.ndarray:
        """Writes one number and two flags per environment; returns the ends, `[N]` bool."""
        self._check("reward", reward, "fiub", "numbers")
        self._check("terminated", terminated, "b", "booleans")
        self._check("truncated", truncated, "b", "booleans")
        self.reward[t] = reward
        self.terminated[t] = terminated
        self.truncated[t] = truncated
        ended: np.ndarray = terminated | truncated
        return ended

    def _check(self, name: str, value: Any, kinds: str, what: str) -> None:
        got = type(value).__name__
        if isinstance(value, np.ndarray):
            if value.shape == (self.num_envs,) and value.dtype.kind in kinds:
                return
            got = f"{value.dtype} {list(value.shape)}"
        raise EnvironmentFault(f"{name}: expected {self.num_envs} {what} in an array, got {got}")

    def put_block(self, start: int, num_steps: int, found: SharedArrays) -> None:
        """Writes what workers answered in T steps, whose ends were SAME_STEP."""
        slots = slice(start, start + num_steps)
        self.obs[start + 1 : slots.stop + 1] = found.obs[:num_steps]
        self.reward[slots] = found.reward[:num_steps]
        self.terminated[slots] = found.terminated[:num_steps]
        self.truncated[slots] = found.truncated[:num_steps]
        ended = self.terminated[slots] | self.truncated[slots]  # [T, N]
        for t in np.flatnonzero(ended.any(axis=1)).tolist():
            rows = np.flatnonzero(ended[t])
            self.final.append((start + t, rows, found.final[t, rows].astype(self.obs.dtype)))


def assemble(
    buffer: RolloutBuffer,
    num_steps: int,
    running: Running,
    *,
    reset_takes_a_step: bool,
    quota: int | None,
    first_step: int,
) -> tuple[Rollout, Running]:
    """The rollout of the first T slots, and the episodes that are still running after it.

    Args:
        running: the episodes that reach into the first slot.
        reset_takes_a_step: the slot after an end is no transition (NEXT_STEP).
        quota: episodes per environment after which its slots are not valid.
        first_step: number of the first slot, for messages.

    Raises:
        EnvironmentFault: a number that is not finite, or an end in a slot that only resets.
    """
    reward = buffer.reward[:num_steps]  # [T, N]
    terminated = buffer.terminated[:num_steps]
    truncated = buffer.truncated[:num_steps]
    done = terminated | truncated
    resets = np.zeros_like(done)  # [T, N] slots that are no transition but a reset
    if reset_takes_a_step:
        resets[0] = buffer.ended_before
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
    check_actions(buffer.action[:num_steps], first_step)
    step, env, final_obs = _final(buffer, valid)
    episodes, still_running, time = _cut(reward, done, resets, running)
    episode_start = np.empty((num_steps + 1, done.shape[1]), dtype=bool)
    episode_start[:-1] = time == 0  # -1 in a slot that only resets
    episode_start[-1] = resets[-1] if reset_takes_a_step else done[-1]
    np.copyto(time, 0, where=~valid)
    rollout = Rollout(
        obs=torch.from_numpy(buffer.obs[: num_steps + 1]),
        action=torch.from_numpy(buffer.action[:num_steps]),
        log_prob=None,
        reward=torch.from_numpy(reward.astype(np.float32)),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated & ~terminated),  # both at once: termination
        valid=torch.from_numpy(valid),
        time=torch.from_numpy(time),
        episode_start=torch.from_numpy(episode_start),
        carry=buffer.carry,
        final_obs=final_obs,
        final_step=torch.from_numpy(step),
        final_env=torch.from_numpy(env),
        episodes=episodes,
        reward_parts=buffer.parts.means(),
    )
    return rollout, still_running


def _cut(
    reward: np.ndarray, done: np.ndarray, resets: np.ndarray, running: Running
) -> tuple[Episodes, Running, np.ndarray]:
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
    before[head] += running[1]
    length = end - start + 1
    time = np.arange(size) - np.repeat(start - before, length)
    sums = np.add.reduceat(reward.T.reshape(size), start)
    sums[head] += running[0]
    length += before
    over = done[step, env]
    order = np.argsort((step * num_envs + env)[over])
    ended = Episodes(*(value[over][order] for value in (sums, length, env, step)))
    last = step == num_steps - 1
    still = np.where(over, 0.0, sums)[last], np.where(over, 0, length)[last]
    return ended, still, time.reshape(num_envs, num_steps).T.copy()


def _final(buffer: RolloutBuffer, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """`[K]` steps, `[K]` environments and `[K, *O]` last observations of valid episodes."""
    step = np.concatenate([np.full(len(envs), t) for t, envs, _ in buffer.final])
    env = np.concatenate([envs for _, envs, _ in buffer.final])
    obs = np.concatenate([last for _, _, last in buffer.final])
    keep = valid[step, env]
    return step[keep], env[keep], torch.from_numpy(obs[keep])


def check_finite(buffer: RolloutBuffer, num_steps: int, first_step: int) -> None:
    """Raises on the first number in T slots that is not finite in float32; see `blame`."""
    wrong = first_not_finite(buffer.reward[:num_steps], "reward")
    obs = first_not_finite(buffer.obs[: num_steps + 1], "observation")
    wrong += [(t - 1, n, what) for t, n, what in obs]
    for t, envs, last in buffer.final:
        obs = first_not_finite(last[None], "observation")
        wrong += [(t, int(envs[k]), what) for _, k, what in obs]
    blame(wrong, buffer.action, first_step)


def blame(wrong: list[tuple[int, int, str]], actions: np.ndarray, first_step: int) -> None:
    """Raises on the first of what an environment gave that is not finite, by step, environment and
    words: NumericalFault where its action, of `[T, N, *A]`, was not, else EnvironmentFault. Other
    actions are not looked at: where workers failed, some were never taken."""
    if wrong:
        t, n, what = min(wrong)
        if t >= 0:
            check_actions(actions[t : t + 1, n : n + 1], first_step, t, n)
        raise EnvironmentFault(f"{step_name(t, first_step)}, environment {n}: {what}")


def check_actions(actions: np.ndarray, first_step: int, t: int = 0, n: int = 0) -> None:
    """Raises NumericalFault on the first of `[T, N, *A]`, from slot t and environment n on, that is
    not finite: an environment need not notice."""
    for after, beside, what in first_not_finite(actions, "action"):
        where = f"{step_name(t + after, first_step)}, environment {n + beside}"
        raise NumericalFault(f"{where}: {what} from the policy; look at its distribution")


def first_not_finite(values: np.ndarray, name: str) -> list[tuple[int, int, str]]:
    """Step, environment and what to say of the first in `[T, N, ...]` that float32 cannot hold."""
    if (at := where_not_finite(values)) is None:
        return []
    t, n, *where = at
    expected = "finite float32 numbers" if where else "a finite float32"
    place = f" at {where}" if where else ""
    return [(t, n, f"{name}: expected {expected}, got {values[at]}{place}")]


def check_shape(
    what: str, found: object, shape: Sequence[int], dtype: torch.dtype | None = None
) -> None:
    """Raises EnvironmentFault for other shapes: torch would stretch them, or not name them."""
    if not isinstance(found, Tensor):
        got = type(found).__name__
    elif found.shape == shape and found.dtype == (dtype or found.dtype):
        return
    else:
        got = f"{list(found.shape)}" + (f" of {found.dtype}" if dtype else "")
    raise EnvironmentFault(f"{what} {list(shape)}{f' of {dtype}' if dtype else ''}, got {got}")


@contextmanager
def untouched(what: str, state: Tensor) -> Iterator[None]:
    """Raises EnvironmentFault where the block writes into the state: an observation that is a view
    of it would change with it."""
    before = None if state.is_inference() else state._version
    yield
    if before is not None and state._version != before:
        raise EnvironmentFault(
            f"{what}: expected the state to stay as it is, got it overwritten; return a new tensor"
        )


def step_name(t: int, first_step: int) -> str:
    """Where slot t + 1 of a rollout comes from; slot 0 was shown before unless a reset gave it."""
    return f"step {first_step + t}" if t >= 0 else f"reset before step {first_step}"
