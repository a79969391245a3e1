"""A pool of worker processes, each with several environments; a vector environment.

The parent writes actions to shared memory and sends each worker one message of three bytes. The
worker steps its environments, writes observations, rewards and flags to shared memory, and answers
with one message, which carries the infos if there are any.

    num_envs = 8, num_workers = 2, num_groups = 4       num_groups = 1

    worker      0         0         1         1         worker      0             1
    group       0         1         2         3         group       0             0
    env         0 1       2 3       4 5       6 7       env         0 1 2 3       4 5 6 7

Groups of environments can step while the policy acts on the others: `step_async(group, actions)`
and `step_wait(group)`. Which results come first depends on timing; what they are does not.

Workers may die, hang or raise: that is one clear error, and nothing is left behind.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
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

from rlpg.errors import UsageError
from rlpg.rollouts.infos import merge_infos
from rlpg.rollouts.processes import GRACE_SECONDS, Processes, usable_cores
from rlpg.rollouts.shared import (
    ALL,
    CALL,
    Share,
    SharedArrays,
    copy_of_rows,
    divide,
    nameless_file,
    put_rows,
)

Outcome = tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class WorkerEnvs(VectorEnv[Any, Any, Any]):
    """Environments in worker processes; autoreset is `SAME_STEP`.

    Args:
        makers: make one environment each. They are called in the workers, which are fresh
            interpreters: they know what they import, not what this process has changed. The first
            is called here too, for the spaces.
        timeout: seconds that a step or reset of each environment may take.
        num_workers: processes, at most one per environment; None: as many as usable cores.
        num_groups: groups of environments that can be stepped by themselves, at most `num_envs`.
            Of a multiple of the workers each group has one worker; else each worker has a part
            of every group.

    Every method that talks to the workers raises EnvironmentFault, with the index of the
    environment, if its worker has died or has not answered in time. All workers are gone then.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]],
        *,
        timeout: float = 60.0,
        num_workers: int | None = None,
        num_groups: int = 1,
    ) -> None:
        num_envs = len(makers)
        num_workers = min(usable_cores() if num_workers is None else num_workers, num_envs)
        if num_workers < 1:
            raise UsageError(f"num_workers: expected at least 1, got {num_workers}")
        if not 1 <= num_groups <= num_envs:
            raise UsageError(f"num_groups: expected 1 to {num_envs} (num_envs), got {num_groups}")
        self.num_envs = num_envs
        self._timeout = timeout
        self._arrays = SharedArrays.none()
        self.groups, shares = divide(num_envs, num_workers, num_groups)
        self._of_group = [[s for s in shares if s.group == g] for g in range(num_groups)]
        self._of_worker = [[s for s in shares if s.worker == w] for w in range(num_workers)]
        self._own = [[n for s in own for n in range(s.start, s.stop)] for own in self._of_worker]
        self._loose: list[Any] = [None] * num_envs  # observations that are in no shared memory
        memory = nameless_file()
        try:
            self._workers = Processes(num_workers, memory, timeout)
            try:
                self._introduce(makers, memory)
            except BaseException:
                self._end(time.monotonic())
                raise
        finally:
            os.close(memory)

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The workers; none after the end."""
        return self._workers.all

    # ------------------------------------------------------------------------------- VectorEnv

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, or in those of `options["reset_mask"]`.

        Steps that have not been waited for are finished first, and dropped.
        """
        self._check_open()
        with self._ending_on_fault():
            self._workers.wait(set(self._workers.pending))
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
        seeds = [{n: seed[n] for n in own if mask[n]} for own in self._own]
        given: dict[int, Any] = {}
        for answer in self._ask([("reset", those, options) for those in seeds]):
            given |= answer
        infos: dict[str, Any] = {}
        for index in sorted(given):
            self._loose[index], info = given[index]
            infos = self._add_info(infos, info, index)
        return self._observations(slice(0, self.num_envs)), infos

    def step(self, actions: Any) -> Outcome:
        """Take an action in every environment."""
        self._check_open()
        if self._workers.pending:
            raise UsageError("step: expected no group to be stepping; call step_wait first")
        workers, rows = range(len(self._workers)), slice(0, self.num_envs)
        with self._ending_on_fault():
            self._send(ALL, workers, rows, self.action_space, actions)
            answers = self._workers.wait({(worker, ALL) for worker in workers})
        parts = [
            (share, answer)
            for worker in workers
            for share, answer in zip(self._of_worker[worker], answers[worker, ALL], strict=True)
        ]
        return self._outcome(rows, sorted(parts, key=lambda part: part[0].start))

    def close_extras(self, **kwargs: Any) -> None:
        """Ask the workers to close, and end those that do not."""
        self._end(time.monotonic() + GRACE_SECONDS)

    # ---------------------------------------------------------------------------------- groups

    def step_async(self, group: int, actions: Any) -> None:
        """Begin a step of the environments `groups[group]`; returns at once.

        Args:
            group: one that is not stepping.
            actions: for its n environments, `[n, *A]`.
        """
        self._check_open()
        if self._keys(group) & self._workers.pending:
            raise UsageError(f"step_async: expected group {group} to be idle; call step_wait first")
        rows, workers = self.groups[group], [share.worker for share in self._of_group[group]]
        with self._ending_on_fault():
            self._send(group, workers, rows, self._group_action_spaces[group], actions)

    def step_wait(self, group: int) -> Outcome:
        """What `step` returns, for the n environments of a group: arrays `[n, ...]`."""
        self._check_open()
        keys = self._keys(group)
        if not keys <= self._workers.pending:
            raise UsageError(f"step_wait: expected group {group} to be stepping; call step_async")
        with self._ending_on_fault():
            answers = self._workers.wait(keys)
        parts = [(share, answers[share.worker, group]) for share in self._of_group[group]]
        return self._outcome(self.groups[group], parts)

    def wait_any(self) -> int:
        """A stepping group whose `step_wait` need not wait; waits until there is one."""
        self._check_open()
        stepping = sorted({group for _, group in self._workers.pending})
        if not stepping:
            raise UsageError("wait_any: expected a group to be stepping; call step_async first")
        with self._ending_on_fault():
            while True:
                for group in stepping:
                    if self._workers.has_answered(self._keys(group)):
                        return group
                missing = {k for k in self._workers.pending if not self._workers.has_answered({k})}
                self._workers.wait(missing, any_of_them=True, take=False)

    # -------------------------------------------------------------------------------- the rest

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or look up an attribute."""
        return self._in_order(self._ask([("call", name, args, kwargs)] * len(self._workers)))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment; a list or tuple has a value for each."""
        each = values if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise UsageError(f"set_attr: expected {self.num_envs} values, got {len(each)}")
        self._ask([("set", name, {n: each[n] for n in own}) for own in self._own])

    def render(self) -> tuple[Any, ...]:
        """A frame of every environment."""
        return self.call("render")

    def replay(self, states: Sequence[Mapping[str, Any]], *, mid_episode: bool) -> Sequence[str]:
        """`EpisodeSeeds.replay_own_episode` of every environment; each step has its time."""
        most_steps = max(int(state["count"]) for state in states) if mid_episode else 0
        options = {"mid_episode": mid_episode}
        asked = [
            ("call", "replay_own_episode", ({n: states[n] for n in own},), options)
            for own in self._own
        ]
        return self._in_order(self._ask(asked, num_calls=1 + most_steps))

    # ------------------------------------------------------------------------------- internals

    def _introduce(
        self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], memory: int
    ) -> None:
        """Tells the workers, which have been started, what they are to do."""
        model = makers[0]()  # while they import what they need
        self.metadata = {**model.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = model.render_mode
        self.single_observation_space = model.observation_space
        self.single_action_space = model.action_space
        model.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._group_action_spaces = [
            batch_space(self.single_action_space, rows.stop - rows.start) for rows in self.groups
        ]
        spaces = self.single_observation_space, self.single_action_space
        sizes = self.num_envs, len(self._workers)
        os.ftruncate(memory, SharedArrays(*spaces, *sizes).num_bytes)
        self._arrays = SharedArrays(*spaces, *sizes, mmap.mmap(memory, 0))
        self._workers.arrays = self._arrays
        for worker, own in enumerate(self._own):
            self._arrays.current[worker] = own[0]
            own_makers: Any = partial(list, [makers[n] for n in own])
            setup = {
                "number": worker,
                "indices": own,
                "rows": {
                    share.group: (share.start, share.stop) for share in self._of_worker[worker]
                },
                "spaces": spaces,
                "num_envs": self.num_envs,
                "num_workers": len(self._workers),
                "makers": CloudpickleWrapper(own_makers),
            }
            self._workers.send(worker, CALL, setup)
        # Making has no time-out: large models are compiled there.
        self._workers.wait(set(self._workers.pending), patience=float("inf"))
        self._workers.limit_sending()

    def _send(
        self,
        group: int,
        workers: Iterable[int],
        rows: slice,
        space: gymnasium.Space[Any],
        actions: Any,
    ) -> None:
        """Asks for a step: actions in the shared memory, or in the message if that casts them."""
        if put_rows(self._arrays.actions, rows, actions):
            for worker in workers:
                self._workers.send(worker, group)
            return
        each = dict(zip(range(rows.start, rows.stop), iterate(space, actions), strict=True))
        for worker in workers:
            own = {n: each[n] for n in self._own[worker] if n in each}
            self._workers.send(worker, group, own, is_large=True)

    def _outcome(self, rows: slice, parts: Sequence[tuple[Share, Any]]) -> Outcome:
        """Copies of what the workers have written, and their infos.

        Args:
            rows: the environments.
            parts: consecutive shares of them, and what their workers have said.
        """
        packed = []
        for share, said in parts:
            infos, observed = said or (None, [])
            packed.append((share.start - rows.start, share.stop - share.start, infos))
            self._loose[share.start : share.start + len(observed)] = observed
        arrays = self._arrays
        return (
            self._observations(rows),
            arrays.reward[rows].copy(),
            arrays.terminated[rows].copy(),
            arrays.truncated[rows].copy(),
            merge_infos(rows.stop - rows.start, packed),
        )

    def _observations(self, rows: slice) -> Any:
        if self._arrays.obs is not None:
            return copy_of_rows(self._arrays.obs, rows)
        # Spaces without a fixed size: Gymnasium makes a tuple of what is in no array.
        space, size = self.single_observation_space, rows.stop - rows.start
        out: Any = create_empty_array(space, size, np.zeros)
        return concatenate(space, self._loose[rows], out)

    def _ask(self, bodies: Sequence[Any], *, num_calls: int = 1) -> list[Any]:
        """The answers of all workers to requests that are no step.

        Args:
            bodies: one per worker.
            num_calls: how many calls, with a time-out each, one of them may take.
        """
        self._check_open()
        if self._workers.pending:
            raise UsageError("call: expected no group to be stepping; call step_wait first")
        keys = [(worker, CALL) for worker in range(len(self._workers))]
        with self._ending_on_fault():
            for (worker, _), body in zip(keys, bodies, strict=True):
                self._workers.send(worker, CALL, body, is_large=True)
            answers = self._workers.wait(keys, patience=self._timeout * num_calls)
        return [answers[key] for key in keys]

    def _in_order(self, answers: Iterable[Mapping[int, Any]]) -> tuple[Any, ...]:
        found = {index: result for answer in answers for index, result in answer.items()}
        return tuple(found[index] for index in range(self.num_envs))

    def _keys(self, group: int) -> set[tuple[int, int]]:
        return {(share.worker, group) for share in self._of_group[group]}

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError(
                "the environments are closed, and their workers have ended"
            )

    @contextmanager
    def _ending_on_fault(self) -> Iterator[None]:
        try:
            yield
        finally:
            if not len(self._workers):  # a fault has ended them
                self._end(time.monotonic())

    def _end(self, deadline: float) -> None:
        self._workers.end(deadline)
        self._arrays.close()
        self.closed = True
