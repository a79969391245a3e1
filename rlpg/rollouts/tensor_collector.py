"""`TensorCollector`: environments, policy and rollout on one device; differentiable on request."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlpg.errors import UsageError
from rlpg.gradients.tape import How, Tape
from rlpg.policies.distributions import DiagonalNormal
from rlpg.policies.heads import independent
from rlpg.policies.networks import global_generator_from
from rlpg.rollouts.base import BaseCollector, never_ends, set_stream, stream
from rlpg.rollouts.buffer import blame, check_actions, check_shape, first_not_finite, untouched
from rlpg.rollouts.rollout import Episodes, Rollout, Window
from rlpg.rollouts.watchdog import WatchedEnvs

if TYPE_CHECKING:
    from rlpg.policies import Policy

_STARTS = 0x737461  # keeps the stream of first states apart from that of the actions
_CHUNK = 64  # steps; episodes() does not know how long they will be
T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class TensorEnv(Protocol):
    """An environment as functions of tensors; `rlpg.envs.batched.Batched` says what they do."""

    observation_space: Any
    action_space: Any
    max_episode_steps: int
    num_uniforms: int

    def start(self, uniform: Tensor) -> Tensor: ...
    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
    def observe(self, state: Tensor) -> Tensor: ...


@runtime_checkable
class HasDynamics(Protocol):
    """A vector environment that steps a `TensorEnv`."""

    dynamics: TensorEnv
    max_episode_steps: int


class TensorCollector(BaseCollector):
    """Collects rollouts from environments made of tensors, on the policy's device.

    The rollouts are those of `Collector`, with tensors on that device: an episode that ends is
    replaced within the step. Nothing waits for the device before the T steps are done; then the
    ends are counted, and their statistics cross to NumPy in one copy. On CUDA the T steps are one
    graph (see `Replayed`), unless they are to be differentiated.

    Args:
        envs: a `TensorEnv`, or a vector environment that steps one (the ids `rlpg/Torch...`).
        policy, seed, log_prob, deterministic: see `BaseCollector`; the seed also says how episodes
            start.
        num_envs: N; as many as `envs` has, where it is a vector environment.
        dtype: of the environments' state.
        gradient: rollouts come with a `Window`: a tape whose samples are the actions, drawn so,
            and the rewards and observations that follow from them, with their gradient. None:
            without.

    Raises:
        UsageError: the policy was made for other observations or actions; the environment cannot
            be differentiated; actions that are discrete or no draws carry no such gradient.
    """

    def __init__(
        self,
        envs: TensorEnv | VectorEnv[Any, Any, Any],
        policy: Policy,
        seed: int | np.random.SeedSequence = 0,
        *,
        num_envs: int | None = None,
        dtype: torch.dtype = torch.float32,
        gradient: How | None = None,
        log_prob: bool = True,
        deterministic: bool = False,
    ) -> None:
        self.env, self._limit = dynamics_of(envs, type(getattr(envs, "unwrapped", envs)).__name__)
        if num_envs is None:
            num_envs = envs.num_envs if isinstance(envs, VectorEnv) else 1
        if num_envs < 1:
            raise UsageError(f"num_envs: expected at least 1, got {num_envs}")
        super().__init__(
            envs, policy, seed, num_envs=num_envs, log_prob=log_prob, deterministic=deterministic
        )
        _check_policy(policy, self.env, gradient)
        if deterministic and gradient is not None:
            raise UsageError(
                f"deterministic: expected False with the gradient {gradient}, which wants draws"
            )
        self.gradient = gradient
        self._dtype = dtype
        self._to_env = policy.head.to_env_on(self._device)
        run = self._seed
        starts = np.random.SeedSequence(run.entropy, spawn_key=(*run.spawn_key, _STARTS))
        if gradient is None:  # a graph takes its numbers where it is replayed
            self._generator = stream(run, self._device)
            self._drawing = None if deterministic else self._generator
        self._starts = stream(starts, self._generator.device)
        self._standing: _Standing | None = None
        self._work: Replayed[_Steps] | None = None
        self._recorded: tuple[int, bool] | None = None  # T, and whether the normalizer did nothing

    def require_memory(self, num_steps: int) -> None:
        """Refuses windows that could not be differentiated in this machine's memory.

        One step is taken, whose tensors that wait for the backward pass are counted, and undone.

        Raises:
            UsageError: `num_steps` times as much is more than there is.
        """
        saved, sizes = self.state_dict(), dict[int, int]()
        own = {parameter.untyped_storage().data_ptr() for parameter in self.policy.parameters()}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            kept = self.steps(1)  # alive to the end, so that no memory is counted as another's
        self.load_state_dict(saved)
        per_step, memory = sum(sizes.values()) + kept.obs.nbytes, memory_of(self._device)
        if per_step * num_steps > memory:
            raise UsageError(
                f"rollout.num_steps: expected at most {memory // per_step}, got {num_steps}: a "
                f"step of {self.num_envs} environments keeps {per_step / 1e6:.3g} MB of the "
                f"{memory / 1e9:.3g} GB for the backward pass; or lower rollout.num_envs"
            )

    def restart(self) -> None:
        self._standing = self._work = None

    def close(self) -> None:
        if isinstance(self.envs, VectorEnv):
            self.envs.close()

    def state_dict(self) -> dict[str, Any]:
        standing = None if self._standing is None else vars(self._standing)
        return super().state_dict() | {
            "starts": self._starts.get_state().numpy().copy(),
            "standing": standing and {k: v.cpu().numpy().copy() for k, v in standing.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> str:
        super().load_state_dict(state)
        set_stream(self._starts, state["starts"])
        self.restart()
        if state["standing"] is not None:
            arrays = {k: torch.from_numpy(np.array(v)) for k, v in state["standing"].items()}
            fresh = self._begin(torch.zeros((self.num_envs, self.env.num_uniforms)))
            for name, value in vars(fresh).items():  # numpy would repeat one that stands for all
                if (got := arrays[name].shape) != value.shape:
                    raise ValueError(f"{name}: expected {[*value.shape]}, got {[*got]}")
            self._standing = _Standing(**{k: v.to(self._device) for k, v in arrays.items()})
        return ""

    # ------------------------------------------------------------------------------- internals

    def _steps(self, num_steps: int) -> Rollout:
        if self._standing is None:
            self._standing = self._begin(self._uniform(1)[0])
        tape = None if self.gradient is None else Tape(self.gradient)
        if tape is None:
            steps = self._replayed(num_steps, self._standing)
        else:
            with torch.enable_grad(), global_generator_from(self._generator, self._device):
                steps = self._play(num_steps, self._standing, tape)
        rollout = self._rollout(steps, torch.ones_like(steps.terminated), tape)
        self.vector_steps += num_steps
        return rollout

    def _episodes(self, per_env: int, max_steps: int) -> Rollout:
        if self.gradient is not None:
            raise UsageError(
                "episodes: expected steps(num_steps) where the rollout is to be differentiated"
            )
        self.restart()  # what was recorded goes on where the last rollout stood
        self._standing = standing = self._begin(self._uniform(1)[0])
        parts: list[_Steps] = []
        ends, limit = torch.zeros(self.num_envs, dtype=torch.int64), per_env * max_steps
        while int(ends.min()) < per_env:
            if len(parts) * _CHUNK >= limit:
                raise never_ends(ends.numpy(), per_env, limit)
            parts.append(self._replayed(_CHUNK, standing))
            ends = ends + parts[-1].done.sum(0).cpu()
        steps = _Steps(*map(torch.cat, zip(*parts, strict=True)))
        obs = torch.cat([*(part.obs[:-1] for part in parts), parts[-1].obs[-1:]])
        before = steps.done.long().cumsum(0) - steps.done.long()  # [T, N] ends before the step
        valid = before < per_env
        num_steps = int(valid.any(1).sum())
        steps = _Steps(*(part[:num_steps] for part in steps))._replace(obs=obs[: num_steps + 1])
        rollout = self._rollout(steps, valid[:num_steps], None)
        self.vector_steps += len(valid)
        return rollout

    def _uniform(self, num_steps: int) -> Tensor:
        shape = (num_steps, self.num_envs, self.env.num_uniforms)
        uniform = torch.empty(shape, dtype=self._dtype, device=self._starts.device)
        return uniform.uniform_(generator=self._starts).to(self._device)

    def _begin(self, uniform: Tensor) -> _Standing:
        state = self.env.start(uniform.to(self._device, self._dtype))
        size = self.num_envs, *(state.shape[1:2] or (1,))
        check_shape("environment.start: expected state", state, size)
        shown = self.num_envs, *self.policy.observations.shape
        check_shape("environment.observe: expected observation", self._shown(state), shown)
        return _Standing(
            state=state,
            returns=torch.zeros(self.num_envs, dtype=torch.float64, device=self._device),
            lengths=torch.zeros(self.num_envs, dtype=torch.int64, device=self._device),
        )

    def _replayed(self, num_steps: int, standing: _Standing) -> _Steps:
        """T steps without gradient, recorded where that saves time; in memory of their own."""
        normalizer = self.policy.normalizer
        # An untrained normalizer leaves its work out, and what was recorded then stays without it.
        kind = (num_steps, normalizer is not None and normalizer.is_identity)
        if self._work is None or kind != self._recorded:
            generators = (self._generator, self._starts)
            play = lambda: self._play(num_steps, standing, None)  # noqa: E731
            self._work, self._recorded = Replayed(play, self._device, generators), kind
        with torch.no_grad():  # no inference_mode: an environment may differentiate on its way
            steps = self._work()
        return _Steps(*map(torch.clone, steps))  # which no replay writes again

    def _play(self, num_steps: int, standing: _Standing, tape: Tape | None) -> _Steps:
        """T steps. Launches work and waits for none of it; `standing` is written in place."""
        env = self.env
        state = standing.state.clone()  # the graph keeps it, and `standing` goes on
        returns, lengths = standing.returns, standing.lengths
        uniform = self._uniform(num_steps)  # how an episode would start after each step
        obs = self._shown(state)
        shown, taken = [obs], []
        for t in range(num_steps):
            action = self._action(obs, tape)
            with untouched(what := "environment.step", state):
                after, reward, terminated = env.step(state, self._to_env(action))
            check_shape(f"{what}: expected state", after, state.shape)
            check_shape(f"{what}: expected reward", reward, state.shape[:1])
            check_shape(f"{what}: expected terminated", terminated, state.shape[:1], torch.bool)
            state = after
            returns, lengths = returns + reward.detach(), lengths + 1  # [N], running episodes
            truncated = lengths >= self._limit
            done = terminated | truncated
            reward, last_obs = reward.float(), self._shown(state)
            taken.append((last_obs, action, reward, terminated, truncated, returns, lengths))
            state = torch.where(done.unsqueeze(-1), env.start(uniform[t]), state)
            returns, lengths = returns.masked_fill(done, 0.0), lengths.masked_fill(done, 0)
            obs = self._shown(state)
            shown.append(obs)
        with torch.no_grad():
            standing.state.copy_(state)
            standing.returns.copy_(returns)
            standing.lengths.copy_(lengths)
        return _Steps(torch.stack(shown), *(torch.stack(p) for p in zip(*taken, strict=True)))

    def _shown(self, state: Tensor) -> Tensor:
        with untouched("environment.observe", state):
            return self.env.observe(state).to(self.policy.observations.torch_dtype)

    def _action(self, obs: Tensor, tape: Tape | None) -> Tensor:
        """`[N, *A]` for observations `[N, *O]`."""
        if tape is not None:
            law = self.policy(obs)[0]
            if isinstance(law, DiagonalNormal):  # "combine" asks for parameters lane by lane
                law = independent(law.base_dist, law.reinterpreted_batch_ndims)
            return tape.sample(law)
        if self._drawing is None:
            return self.policy.mode(obs)[0]
        return self.policy.draw(obs, None, self._drawing)[0]

    def _rollout(self, graph: _Steps, valid: Tensor, tape: Tape | None) -> Rollout:
        """The rollout of T steps, and its window if there is a tape."""
        steps = _Steps(*map(torch.detach, graph))
        self._check_finite(steps)
        step, env = (steps.done & valid).nonzero().unbind(1)  # [E], in the order of the ends
        found = [steps.returns[step, env], steps.lengths[step, env], step, env]
        returns, *counts = torch.stack([part.double() for part in found]).cpu().numpy()
        length, at, where = (part.astype(np.int64) for part in counts)
        window = None
        if tape is not None:
            window = Window(tape, graph.reward, graph.obs[-1], graph.last_obs[step, env])
        return Rollout(
            obs=steps.obs,
            action=steps.action,
            log_prob=None,
            reward=steps.reward,
            terminated=steps.terminated,
            truncated=steps.truncated & ~steps.terminated,  # both at once: termination
            valid=valid,
            time=steps.lengths - 1,
            episode_start=torch.cat([steps.lengths == 1, steps.done[-1:]]),
            carry=None,
            final_obs=steps.last_obs[step, env],
            final_step=step,
            final_env=env,
            episodes=Episodes(returns, length, where, at),
            window=window,
        )

    def _check_finite(self, steps: _Steps) -> None:
        parts = steps.action, steps.reward, steps.last_obs
        if not torch.stack([part.isfinite().all() for part in parts]).all():
            action, reward, last_obs = (part.cpu().numpy() for part in parts)
            wrong = first_not_finite(reward, "reward") + first_not_finite(last_obs, "observation")
            blame(wrong, action, self.vector_steps)
            check_actions(action, self.vector_steps)


def dynamics_of(envs: Any, name: str) -> tuple[TensorEnv, int]:
    """The environment as functions of tensors, and its time limit; UsageError if there is none."""
    if isinstance(envs, TensorEnv):
        return envs, envs.max_episode_steps
    base = envs.env if isinstance(envs, WatchedEnvs) else envs
    if not isinstance(base, HasDynamics):  # a wrapper is no function of tensors
        raise UsageError(
            f"environment: expected one that can be differentiated (rlpg/TorchPendulum-v1, "
            f"rlpg/LQR-v0, rlpg/Hedging-v0, ...), native and without wrappers, got {name}; use it "
            "with another agent (ppo), or write its step as functions of tensors"
        )
    return base.dynamics, base.max_episode_steps


def _check_policy(policy: Policy, env: TensorEnv, gradient: How | None) -> None:
    expected, got = policy.observations.space, env.observation_space
    if expected != got or policy.observations.info_mask:
        raise UsageError(f"policy: expected observations {got} without a mask, got {expected}")
    if policy.has_memory:
        raise UsageError(
            "policy: expected one without memory (policy.memory none); use Collector, or ppo"
        )
    if policy.head.space != env.action_space:
        raise UsageError(f"policy: expected {env.action_space}, got {policy.head.space}")
    if gradient in ("pathwise", "combine") and np.dtype(env.action_space.dtype).kind != "f":
        raise UsageError(
            f"action: expected a float Box for the gradient {gradient}, got {env.action_space}; "
            "use the gradient score"
        )


def memory_of(device: torch.device) -> int:
    """Bytes that the device has; of a GPU those that are free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class _Standing:
    """Where the environments stand between two rollouts; written in place."""

    state: Tensor  # [N, S]
    returns: Tensor  # [N] float64, of the running episodes so far
    lengths: Tensor  # [N] int64


class _Steps(NamedTuple):
    """T steps."""

    obs: Tensor  # [T + 1, N, *O] what the policy is shown
    last_obs: Tensor  # [T, N, *O] what each step led to
    action: Tensor  # [T, N, *A]
    reward: Tensor  # [T, N] float32
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    returns: Tensor  # [T, N] float64, sum of rewards of the episode so far
    lengths: Tensor  # [T, N] int64, steps of the episode so far

    @property
    def done(self) -> Tensor:
        return self.terminated | self.truncated


class Replayed(Generic[T_co]):
    """Calls a function; on CUDA, from the second call on, as one CUDA graph.

    A graph is launched as a whole, so that the Python between its kernels costs nothing. The first
    call runs as it is: libraries choose their algorithms and memory in it.

    Args:
        function: reads the same tensors in every call, waits for nothing, and takes every random
            number from `generators`. What it returns is written again by the next call.
        device: of its tensors.
        generators: on that device; each replay continues their streams.
    """

    def __init__(
        self,
        function: Callable[[], T_co],
        device: torch.device,
        generators: Sequence[torch.Generator],
    ) -> None:
        self._function, self._generators = function, generators
        self._is_recording = device.type == "cuda"
        self._was_called = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> T_co:
        if not self._is_recording or not self._was_called:
            self._was_called = True
            return self._function()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                graph.register_generator_state(generator)
            # This records, and runs nothing. An older graph that is freed meanwhile spoils it.
            gc.collect()
            with (
                _no_garbage_collected(),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                self._result = self._function()
            self._graph = graph
        self._graph.replay()
        return self._result


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
