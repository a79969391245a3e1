"""A pool of worker processes, each with several environments; a vector environment.

    num_envs = 8, num_workers = 2       worker 0            worker 1
                                        env 0 1 2 3         env 4 5 6 7

The parent writes actions to shared memory and sends the worker one byte. The worker steps its
environments, writes observations, rewards and flags to shared memory, and answers with one byte.
A rollout needs no more than that, but the parts of the reward in infos (`RewardParts`), which come
as messages. Its workers need not wait for each other either: the memory has room for the outcomes
of many steps, and whoever is ready gets its next actions (`run_ahead`).

    step        worker 0    0  1  2  3  4 ...       one of its environments is reset in step 1 of
                worker 1    0     1  2  3 ...       worker 1, which takes a while

`step` is what Gymnasium describes: all environments, with their infos.

Workers may die, hang or raise: that is one clear error, and nothing is left behind.
"""

from __future__ import annotations

import copy
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    batch_space,
    concatenate,
    create_empty_array,
    iterate,
)

from rlpg.errors import EnvironmentFault, UsageError
from rlpg.rollouts.processes import GRACE_SECONDS, Processes, usable_cores
from rlpg.rollouts.shared import Outcomes, SharedArrays, nameless_file, put_all

Maker = Callable[[], gymnasium.Env[Any, Any]]
# Actions [N, *A] for observations [N, *O]; of each worker that asks, its step and its rows.
Act = Callable[[np.ndarray, Sequence[tuple[int, slice]]], np.ndarray]

_CODES = [bytes([step]) for step in range(128)]


def _listed(makers: Sequence[Maker]) -> Any:
    """Gives the makers when it is called, because a `CloudpickleWrapper` must be called."""
    return partial(list, makers)


class WorkerEnvs(VectorEnv[Any, Any, Any]):
    """Environments in worker processes; autoreset is `SAME_STEP`.

    Args:
        makers: make one `EpisodeSeeds` each. They are called in the workers, which are fresh
            interpreters: they know what they import, not what this process has changed. The first
            is called here too, for the spaces.
        timeout: seconds that a step or reset of each environment may take.
        num_workers: processes, at most one per environment; None: as many as usable cores.

    Every method that talks to the workers raises EnvironmentFault, with the index of the
    environment, if its worker has died or has not answered in time. All workers are gone then.
    """

    def __init__(
        self, makers: Sequence[Maker], *, timeout: float = 60.0, num_workers: int | None = None
    ) -> None:
        self.num_envs = len(makers)
        count = min(usable_cores() if num_workers is None else num_workers, self.num_envs)
        if count < 1:
            raise UsageError(f"num_workers: expected at least 1, got {count}")
        self._own = [  # by worker
            range(self.num_envs * k // count, self.num_envs * (k + 1) // count)
            for k in range(count)
        ]
        self._loose: list[Any] = [None] * self.num_envs  # observations in no shared memory
        self._is_interrupted = False
        self._last_step = 0  # of the outcomes: the one that the environments have taken last
        model = makers[0]()
        self.metadata = {**model.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = model.render_mode
        self.single_observation_space = model.observation_space
        self.single_action_space = model.action_space
        model.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        spaces, sizes = (model.observation_space, model.action_space), (self.num_envs, count)
        memory = nameless_file()
        try:
            self._arrays = SharedArrays(*spaces, *sizes, memory)
            for worker, own in enumerate(self._own):
                self._arrays.board[worker, :2] = own[0], -1
            self._workers = Processes(count, self._arrays, memory, timeout)
        finally:
            os.close(memory)
        # How many steps `run_ahead` may take at most; 0: none, the spaces are not single arrays.
        plain = self._arrays.outcomes.obs, self._arrays.actions
        is_plain = all(isinstance(part, np.ndarray) for part in plain)
        num_steps = len(self._arrays.steps)
        self.steps_ahead = num_steps if is_plain else 0
        setups = [
            {"worker": worker, "first": own[0], "spaces": spaces, "sizes": (*sizes, num_steps),
             "makers": CloudpickleWrapper(_listed(makers[own.start : own.stop]))}
            for worker, own in enumerate(self._own)
        ]  # fmt: skip
        try:
            # Making has no time-out: large models are compiled there.
            pickled = [bytes(ForkingPickler.dumps(setup)) for setup in setups]
            self._workers.ask([("make", setup) for setup in pickled], patience=float("inf"))
            self._workers.limit()
        except BaseException:
            self._end(time.monotonic())
            raise

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The workers; none after the end."""
        return self._workers.all

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, or in those of `options["reset_mask"]`."""
        options = dict(options) if options is not None else None
        mask = np.ones(self.num_envs, dtype=bool)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options.pop("reset_mask"), dtype=bool)
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + n for n in range(self.num_envs)]
        if len(seed) != self.num_envs or mask.shape != (self.num_envs,):
            raise UsageError(
                f"reset: expected {self.num_envs} seeds and a mask of shape [{self.num_envs}], got "
                f"{len(seed)} and {list(mask.shape)}"
            )
        if self._last_step:  # a reset shows the others as they are
            now, last = self._arrays.steps[0].obs, self._arrays.steps[self._last_step].obs
            now[...], self._last_step = last, 0
        seeds = [{n: seed[n] for n in own if mask[n]} for own in self._own]
        infos: dict[str, Any] = {}
        for given in self._ask([("reset", those, options) for those in seeds]):
            for index, (obs, info) in given.items():
                self._loose[index] = obs
                infos = self._add_info(infos, info, index)
        self._is_interrupted = False
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in every environment."""
        self._check_ready()
        requests: list[Any] = [("step", None)] * len(self._own)
        if not put_all(self._arrays.actions, actions):
            each = list(iterate(self.action_space, actions))
            requests = [("step", each[own.start : own.stop]) for own in self._own]
        self._is_interrupted = True
        answers = self._ask(requests)
        for own, (_, observed) in zip(self._own, answers, strict=True):
            self._loose[own.start : own.start + len(observed)] = observed
        infos = self._together([given for given, _ in answers])
        self._is_interrupted, self._last_step = False, 0
        found = self._arrays.steps[0]
        flags = found.terminated.copy(), found.truncated.copy()
        return self._observations(), found.reward.copy(), *flags, infos

    def outcomes(self, num_steps: int) -> Outcomes:
        """Where `run_ahead` puts what the environments answer, `[T, N, ...]`."""
        return self._arrays.outcomes.part(slice(num_steps))

    def run_ahead(
        self, obs: np.ndarray, num_steps: int, first_step: int, act: Act
    ) -> list[dict[str, Any]]:
        """Takes steps in which no environment waits for those of another worker.

        What they answer is in `outcomes`, until the next step; after an error, zeros stand for
        what is missing.

        Args:
            obs: `[N, *O]` of the environments as they are; replaced by the next ones as they come.
            num_steps: T, at most `steps_ahead`.
            first_step: number of the first of them, for messages.
            act: is given `obs` and, of each worker that is ready, which of the T steps is next and
                which rows are its environments; returns actions `[N, *A]`, of which those rows
                count.

        Returns:
            Of the infos of each step, the parts of the reward (`RewardParts`).
        """
        self._check_ready()
        workers, actions, outcomes = self._workers, self._arrays.actions, self.outcomes(num_steps)
        rows = [slice(own.start, own.stop) for own in self._own]
        at = [0] * len(rows)  # step of each worker
        parts: list[list[Any]] = [[()] * len(rows) for _ in range(num_steps)]  # by worker
        ready, left = list(range(len(rows))), len(rows) * num_steps
        self._is_interrupted = True
        try:
            while left:
                if ready:
                    chosen = act(obs, [(at[worker], rows[worker]) for worker in ready])
                for worker in ready:
                    mine = rows[worker]
                    np.copyto(actions[mine], chosen[mine], casting="no")
                    workers.send(worker, _CODES[at[worker]])
                ready = []
                for worker, told in workers.wait_any().items():
                    parts[at[worker]][worker] = told or ()
                    obs[rows[worker]] = outcomes.obs[at[worker], rows[worker]]
                    at[worker] += 1
                    left -= 1
                    if at[worker] < num_steps:
                        ready.append(worker)
        except BaseException as error:
            for worker, taken in enumerate(at):
                outcomes.part((slice(taken, None), rows[worker])).clear()
            del outcomes, actions  # who keeps the error keeps this frame, but not the memory
            if not workers.all:  # something has ended them
                self._end(time.monotonic())
            if workers.faulty is None:
                raise
            where = f"step {first_step + at[workers.faulty]}"
            raise EnvironmentFault(f"{where}: {error}") from error
        self._is_interrupted, self._last_step = False, num_steps - 1
        return [self._together(given) if any(given) else {} for given in parts]

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or look up an attribute."""
        answers = self._ask([("call", name, args, kwargs)] * len(self._own))
        return tuple(result for answer in answers for result in answer)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment; a list or tuple has a value for each."""
        each = values if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise UsageError(f"set_attr: expected {self.num_envs} values, got {len(each)}")
        self._ask([("set", name, each[own.start : own.stop]) for own in self._own])

    def render(self) -> tuple[Any, ...]:
        """A frame of every environment."""
        return self.call("render")

    def replay(self, states: Sequence[Mapping[str, Any]]) -> Sequence[str]:
        """`EpisodeSeeds.replay_own_episode` of every environment; each step has its time."""
        of_workers = [{n: states[n] for n in own} for own in self._own]
        answers = self._ask([("call", "replay_own_episode", (own,), {}) for own in of_workers])
        return [problem for answer in answers for problem in answer]

    def close_extras(self, **kwargs: Any) -> None:
        """Ask the workers to close, and end those that do not."""
        self._end(time.monotonic() + GRACE_SECONDS)

    # ------------------------------------------------------------------------------- internals

    def _observations(self) -> Any:
        obs = self._arrays.steps[0].obs
        if obs is not None:
            return copy.deepcopy(obs)
        # Spaces without a fixed size: Gymnasium makes a tuple of what is in no array.
        space = self.single_observation_space
        out: Any = create_empty_array(space, self.num_envs, np.zeros)
        return concatenate(space, self._loose, out)

    def _together(self, given: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
        """One info of those that each worker has given, of all its environments or of none."""
        infos: dict[str, Any] = {}
        for own, those in zip(self._own, given, strict=True):
            for index, info in zip(own, those, strict=False):
                infos = self._add_info(infos, info, index)
        return infos

    def _check_ready(self) -> None:
        self._check_open()
        if self._is_interrupted:
            raise UsageError(
                "step: expected a reset after a step that was interrupted, got another step; call "
                "reset(), or restart() of the collector"
            )

    def _ask(self, requests: Sequence[Any]) -> list[Any]:
        """The answers of all workers."""
        self._check_open()
        try:
            return self._workers.ask(requests)
        finally:
            if not self._workers.all:  # something has ended them
                self._end(time.monotonic())

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError(
                "the environments are closed, and their workers have ended"
            )

    def _end(self, deadline: float) -> None:
        self._workers.end(deadline)
        self._arrays.close()
        self.closed = True
