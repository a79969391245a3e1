"""A pool of worker processes, each with several environments; a vector environment.

    num_envs = 8, num_workers = 2       worker 0            worker 1
                                        env 0 1 2 3         env 4 5 6 7

The parent writes actions to shared memory and sends the worker one byte. The worker steps its
environments, writes observations, rewards and flags to shared memory, and answers with one byte.
Workers need not wait for each other: the memory has room for many steps, and whoever is ready gets
its next actions (`run_ahead`). `step` is Gymnasium's: all environments, with their infos.
"""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import CloudpickleWrapper, batch_space, iterate

from rlpg.errors import EnvironmentFault, UsageError
from rlpg.rollouts.processes import Processes, usable_cores
from rlpg.rollouts.reward_parts import RewardParts
from rlpg.rollouts.shared import SharedArrays, nameless_file, view
from rlpg.rollouts.watchdog import GRACE_SECONDS

Maker = Callable[[], gymnasium.Env[Any, Any]]
# Actions [N, *A] for observations [N, *O]; of each worker that asks, its step and its rows.
Act = Callable[[np.ndarray, Sequence[tuple[int, slice]]], np.ndarray]


class WorkerEnvs(VectorEnv[Any, Any, Any]):
    """Environments in worker processes; autoreset is `SAME_STEP`.

    Args:
        makers: make one `EpisodeSeeds` each. They are called in the workers, which are fresh
            interpreters: they know what they import, not what this process has changed. The first
            is called here too, for the spaces.
        timeout: seconds that a step or reset of each environment may take.
        num_workers: processes, at most one per environment; None: as many as usable cores.

    Every method that talks to the workers raises EnvironmentFault, with the index of the
    environment, if it raises, or if its worker has died or has not answered in time. All workers
    are gone then.
    """

    def __init__(
        self, makers: Sequence[Maker], *, timeout: float = 60.0, num_workers: int | None = None
    ) -> None:
        self.num_envs = len(makers)
        count = min(usable_cores() if num_workers is None else num_workers, self.num_envs)
        ends = [self.num_envs * k // count for k in range(count + 1)]
        self._rows = [slice(*both) for both in pairwise(ends)]  # environments of each worker
        self._is_interrupted = False
        self._last_step = 0  # of those in the memory: the one that was taken last
        model = makers[0]()
        self.metadata = {**model.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = model.render_mode
        self.single_observation_space = model.observation_space
        self.single_action_space = model.action_space
        model.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        spaces, memory = (model.observation_space, model.action_space), nameless_file()
        try:
            self._arrays = arrays = SharedArrays(*spaces, self.num_envs, count, None, memory)
            arrays.board[:, 0], arrays.board[:, 1] = ends[:-1], -1
            self._workers = Processes(count, arrays, memory, timeout)
        finally:
            os.close(memory)
        # How many steps `run_ahead` may take at most; 0: none.
        is_plain = isinstance(arrays.obs, np.ndarray) and isinstance(arrays.actions, np.ndarray)
        self.steps_ahead = arrays.num_steps if is_plain else 0
        try:
            sizes = self.num_envs, count, arrays.num_steps
            setups: Any = [  # with lambdas
                CloudpickleWrapper((worker, rows, spaces, sizes, makers[rows]))  # type: ignore[arg-type]
                for worker, rows in enumerate(self._rows)
            ]
            self._workers.ask([("make", bytes(ForkingPickler.dumps(setup))) for setup in setups])
            self._workers.limit()  # not before: large models are compiled there
        except BaseException:
            self._end()
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
            got = f"got {len(seed)} and {list(mask.shape)}"
            raise UsageError(f"reset: expected seeds and a mask [N] = [{self.num_envs}], {got}")
        if self._last_step:  # a reset shows the others as they are
            self._arrays.obs[0], self._last_step = self._arrays.obs[self._last_step], 0
        chosen = [(n, seed[n]) if mask[n] else None for n in range(self.num_envs)]
        due = [dict(filter(None, chosen[rows])) for rows in self._rows]
        infos: dict[str, Any] = {}
        for given in self._ask([("reset", seeds, options) for seeds in due]):
            for index, info in given.items():
                infos = self._add_info(infos, info, index)
        self._is_interrupted = False
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._check_ready()
        each: Any = actions  # its rows are one for each environment
        if not isinstance(actions, np.ndarray):
            each = list(iterate(self.action_space, actions))
        self._is_interrupted = True
        answers = self._ask([("step", 0, each[rows]) for rows in self._rows])
        self._is_interrupted, self._last_step = False, 0
        infos: dict[str, Any] = {}
        for rows, given in zip(self._rows, answers, strict=True):
            for index, info in enumerate(given or (), rows.start):
                infos = self._add_info(infos, info, index)
        arrays = self._arrays
        flags = arrays.terminated[0].copy(), arrays.truncated[0].copy()
        return self._observations(), arrays.reward[0].copy(), *flags, infos

    def run_ahead(
        self,
        obs: np.ndarray,
        num_steps: int,
        first_step: int,
        act: Act,
        keep: Callable[[SharedArrays], None],
    ) -> None:
        """Takes steps in which no environment waits for those of another worker.

        Args:
            obs: `[N, *O]` of the environments as they are; replaced by the next ones as they come.
            num_steps: T, at most `steps_ahead`.
            first_step: number of the first of them, for messages.
            act: is given `obs` and, of each worker that is ready, which of the T steps is next and
                which rows are its environments; returns actions `[N, *A]`, of which those rows
                count.
            keep: copies the outcomes of the T steps, also when there is an error; zeros stand for
                what is missing then.
        """
        self._check_ready()
        workers, arrays = self._workers, self._arrays
        rows = self._rows
        at = [0] * len(rows)  # step of each worker
        ready = list(range(len(rows)))
        self._is_interrupted = True
        try:
            while min(at) < num_steps:
                if ready:
                    chosen = act(obs, [(at[worker], rows[worker]) for worker in ready])
                for worker in ready:
                    mine = rows[worker]
                    np.copyto(arrays.actions[mine], chosen[mine], casting="no")
                    workers.send(worker, bytes((at[worker],)))
                ready = []
                for worker in workers.wait_any():
                    obs[rows[worker]] = arrays.obs[at[worker], rows[worker]]
                    at[worker] += 1
                    if at[worker] < num_steps:
                        ready.append(worker)
        except BaseException as error:
            for worker, taken in enumerate(at):
                arrays.clear(slice(taken, num_steps), rows[worker])
            keep(arrays)  # who keeps the error keeps this frame, but not the memory
            if not workers.all:  # something has ended them
                self._end()
            if workers.faulty is None:
                raise
            where = f"step {first_step + at[workers.faulty]}"
            raise EnvironmentFault(f"{where}: {error}") from error
        keep(arrays)
        self._is_interrupted, self._last_step = False, num_steps - 1

    def reward_parts(self) -> RewardParts:
        """Of all `run_ahead` since the last call, or since the last reset."""
        parts = RewardParts(self.num_envs)
        for rows, sums in zip(self._rows, self._ask([("parts",)] * len(self._rows)), strict=True):
            parts.put(sums, rows)
        return parts

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or look up an attribute."""
        return tuple(chain(*self._ask([("call", name, args, kwargs)] * len(self._rows))))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment; a list or tuple has a value for each."""
        each = values if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise UsageError(f"set_attr: expected {self.num_envs} values, got {len(each)}")
        self._ask([("set", name, each[rows]) for rows in self._rows])

    def render(self) -> tuple[Any, ...]:
        return self.call("render")

    def close_extras(self, **kwargs: Any) -> None:
        """Ask the workers to close, and end those that do not."""
        self._end(GRACE_SECONDS)

    # ------------------------------------------------------------------------------- internals

    def _observations(self) -> Any:
        return copy.deepcopy(view(self._arrays.obs, 0))

    def _check_ready(self) -> None:
        self._check_open()
        if self._is_interrupted:
            raise UsageError(
                "step: expected reset(), or restart() of the collector, after an interrupted step"
            )

    def _ask(self, requests: Sequence[Any]) -> list[Any]:
        self._check_open()
        try:
            return self._workers.ask(requests)
        finally:
            if not self._workers.all:  # something has ended them
                self._end()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environments and their workers are closed")

    def _end(self, grace: float = 0.0) -> None:
        self._workers.end(grace)
        self._arrays.close()
        self.closed = True
