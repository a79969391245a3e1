"""A policy as one module of tensors, for `torch.export` and ONNX: what an environment takes for
an observation, without rlpg.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from rlpg.errors import UsageError
from rlpg.policies import Policy, StandardPolicy
from rlpg.policies.actions import ProductHead
from rlpg.policies.boxes import GaussianHead
from rlpg.policies.heads import (
    BernoulliHead,
    CategoricalHead,
    Head,
    MultiBinaryHead,
    MultiCategoricalHead,
)
from rlpg.policies.networks import Carry, carry_parts
from rlpg.policies.spaces import leaves, path_name
from rlpg.runs import files

ROWS = 8  # of observations that an exported file is checked with
TOLERANCE = 1e-5


class Acting(nn.Module):
    """Packed observations in, what a vector environment takes out; normalizer, network, memory and
    the way from the head to the space are inside.

    `forward(observation, [uniform], [episode_start, carry...])` returns the parts of the action,
    one for each leaf of the action space, and the next carry. All are of N environments:

        observation    [N, *O]  as `policy.observations.pack` makes it: what the environment gives
                                if its space is a Box; for a Dict or Tuple its parts, flattened, one
                                after the other; categories count from 0
        uniform        [N, K]   random numbers in (0, 1), where actions are sampled
        episode_start  [N]      bool, with memory: the carry is reset there
        carry          [N, ...] with memory: what the last call returned; zeros at first

    Args:
        policy: is copied.
        deterministic: the mode of the distribution instead of a sample.

    Raises:
        UsageError: its actions cannot be sampled by a fixed number of uniform numbers.
    """

    def __init__(self, policy: Policy, *, deterministic: bool = True) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).cpu().eval().requires_grad_(False)
        self.policy.reset()
        self.deterministic = deterministic
        self.num_uniform = 0 if deterministic else _num_uniform(self.policy.head)
        if not deterministic and not isinstance(policy, StandardPolicy):
            raise UsageError(
                f"export: expected the standard policy to sample from, got "
                f"{type(policy).__name__}; export its deterministic actions"
            )
        found = leaves(self.policy.head.space, "action")
        self.action_names = [path_name("action", path) for path, _ in found]
        self.initial = carry_parts(self.policy.initial_carry(1))

    @property
    def input_names(self) -> list[str]:
        """In the order of `forward`."""
        names = ["observation", *(["uniform"] if self.num_uniform else [])]
        return [*names, *(["episode_start", *self._carries] if self.initial else [])]

    @property
    def output_names(self) -> list[str]:
        """In the order of what `forward` returns."""
        return [*self.action_names, *(f"next_{name}" for name in self._carries)]

    @property
    def _carries(self) -> list[str]:
        return [f"carry_{k}" for k in range(len(self.initial))]

    def examples(self, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of `forward` that are drawn from the observation space."""
        observations = self.policy.observations
        space = copy.deepcopy(observations.space)
        space.seed(seed)
        mask = np.ones(observations.info_mask) if observations.info_mask else None
        drawn = [observations.pack(space.sample(), mask=mask) for _ in range(rows)]
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.from_numpy(np.stack(drawn))]
        if self.num_uniform:
            inputs.append(torch.rand(rows, self.num_uniform, generator=generator))
        if self.initial:
            carry = [
                torch.randn(rows, *part.shape[1:], generator=generator) for part in self.initial
            ]
            inputs += [torch.arange(rows) % 2 == 0, *carry]
        return tuple(inputs)

    def forward(self, observation: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        uniform, rest = (rest[0], rest[1:]) if self.num_uniform else (None, rest)
        carry = self._carry(*rest) if self.initial else None
        if uniform is None:
            action, carry = self.policy.mode(observation, carry)
        else:
            assert isinstance(self.policy, StandardPolicy)
            outputs, mask, carry = self.policy.outputs(observation, carry)
            action = _sample(self.policy.head, outputs, mask, uniform)
        return (*_to_env(self.policy.head, action), *carry_parts(carry))

    def _carry(self, starts: Tensor, *parts: Tensor) -> Carry:
        """With the initial carry where an episode starts."""
        fresh = [
            torch.where(starts.reshape(-1, *(1,) * (part.ndim - 1)), initial, part)
            for part, initial in zip(parts, self.initial, strict=True)
        ]
        is_pair = isinstance(self.policy.initial_carry(1), tuple)
        return tuple(fresh) if is_pair else fresh[0]


def exported(acting: Acting) -> torch.export.ExportedProgram:
    """The module as a program of `torch.export`, for any number N of environments;
    UsageError for a policy of one's own that cannot be traced."""
    batch = torch.export.Dim("batch", min=1, max=65_536)
    inputs = acting.examples(3)
    rest = tuple({0: batch} for _ in inputs[1:])
    shapes: tuple[Any, ...] = ({0: batch}, rest) if rest else ({0: batch},)
    try:
        with torch.no_grad(), _tracing():
            return torch.export.export(acting, inputs, dynamic_shapes=shapes)
    except Exception as error:  # whatever a policy of one's own raises
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"export: expected a policy that torch.export can trace, got {type(error).__name__}: "
            f"{reason:.200}; in its forward use tensor operations only, and no branch on values"
        ) from error


def to_onnx(policy: Policy, path: Path, *, deterministic: bool = True) -> float:
    """Write a policy as an ONNX file that acts like it, and check that with onnxruntime.

    The largest difference between the outputs of the file and of the policy, see `_difference`. The
    file takes the mode of the distribution, or else samples from `uniform` numbers. UsageError
    where the policy cannot be exported, or acts differently as a file.
    """
    acting = Acting(policy, deterministic=deterministic)
    program = exported(acting)
    with _tracing():
        converted = torch.onnx.export(
            program,
            input_names=acting.input_names,
            output_names=acting.output_names,
            dynamo=True,
            verbose=False,
        )
    assert converted is not None
    model = converted.model_proto.SerializeToString()
    difference = _difference(acting, model)
    if not difference <= TOLERANCE:
        raise UsageError(
            f"export: expected the file to act like the policy, got a difference of "
            f"{difference:.2g}; please report the policy's network"
        )
    files.write(path, model)
    return difference


def _difference(acting: Acting, model: bytes) -> float:
    """Between what the module and onnxruntime say to the same inputs; beyond 1 as a share of the
    largest value of each dimension, because the rounding of float32 grows with it.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = acting.examples(ROWS, seed=1)
    named = {name: value.numpy() for name, value in zip(acting.input_names, inputs, strict=True)}
    with torch.no_grad():
        ours = acting(*inputs)
    theirs = session.run(acting.output_names, named)
    found = []
    for mine, other in zip((part.numpy().astype(np.float64) for part in ours), theirs, strict=True):
        size = np.abs(mine).max(axis=0, initial=1.0)
        found.append(float((np.abs(mine - other) / size).max()))
    return max(found)


def _num_uniform(head: Head) -> int:
    """How many uniform numbers a sample of the head takes."""
    if isinstance(head, ProductHead):
        return sum(map(_num_uniform, head.parts))
    if isinstance(head, GaussianHead):
        return 2 * int(np.prod(head.action_shape, dtype=int))
    if isinstance(head, BernoulliHead | CategoricalHead | MultiBinaryHead | MultiCategoricalHead):
        return head.num_outputs
    raise UsageError(
        f"export: expected actions that can be sampled in a fixed number of operations, got "
        f"{type(head).__name__}; export the deterministic actions"
    )


def _sample(head: Head, outputs: Tensor, mask: Tensor | None, uniform: Tensor) -> Tensor:
    """Actions `[N, *A]` with the law of the head, as a function of numbers in (0, 1) `[N, K]`."""
    if isinstance(head, ProductHead):
        parts, start = [], 0
        for part, piece, part_mask in head.inputs(outputs, mask):
            stop = start + _num_uniform(part)
            parts.append(_sample(part, piece, part_mask, uniform[:, start:stop]))
            start = stop
        return head.layout.join(parts)
    uniform = uniform.clamp(1e-30, 1.0 - 2.0**-24)
    if isinstance(head, GaussianHead):  # Box and Muller 1958
        mean, log_std = head.moments(outputs)
        first, second = uniform.chunk(2, -1)
        normal = (-2.0 * first.log()).sqrt() * torch.cos(2.0 * torch.pi * second)
        return mean + log_std.exp() * normal.reshape(mean.shape)
    is_bit = isinstance(head, BernoulliHead | MultiBinaryHead)
    noise = uniform.logit() if is_bit else -(-uniform.log()).log()  # else Gumbel's
    return head.mode(outputs + noise, mask)


def _to_env(head: Head, action: Tensor) -> list[Tensor]:
    """`head.to_env` in tensors: one for each leaf of the action space."""
    if isinstance(head, ProductHead):
        pieces = zip(head.parts, head.layout.split(action), strict=True)
        return [leaf for part, piece in pieces for leaf in _to_env(part, piece)]
    return [head.to_env_on(action.device)(action)]


@contextmanager
def _tracing() -> Iterator[None]:
    """Without the remarks of torch's exporter about itself, and without what it cannot trace: that
    distributions look at the values of their parameters."""
    logger = logging.getLogger("torch.onnx")
    level, validates = logger.level, Distribution._validate_args
    logger.setLevel(logging.ERROR)
    Distribution.set_default_validate_args(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        Distribution.set_default_validate_args(validates)
