"""How good the gradient of a run is, and which baseline and batch size would serve it best.

Fresh episodes are played with the run's policy; every estimator sees the same ones. Baselines that
learn from the past are fitted on calibration episodes that the gradients never see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlpg.engine.components import (
    environment_options,
    generator_from,
    make_learner,
    make_policy,
    recipe_of_run,
    seed_sequence,
    with_record,
)
from rlpg.engine.device import fresh_torch
from rlpg.engine.evaluator import check_spaces
from rlpg.engine.loading import environment_to_make
from rlpg.engine.restore import fitting, restore_tensors
from rlpg.errors import UsageError
from rlpg.gradients.baselines import STATISTICAL, Baseline
from rlpg.learners import Learner
from rlpg.learners.advantages import AdvantageRule
from rlpg.learners.settings import LearnerSettings
from rlpg.learners.values import NetworkValue, make_baseline
from rlpg.policies import map_carry
from rlpg.policies.references import NO_PARTS, UserParts
from rlpg.rollouts import Collector, Rollout, make_envs
from rlpg.runs import files
from rlpg.runs.recipe import Device, Recipe, override
from rlpg.runs.run import open_run
from rlpg.runs.store import newest_checkpoint
from rlpg.settings import SCHEDULE

LAMBDAS = (0.0, 0.5, 0.9, 0.95, 0.99)
GROUPS = 64  # of episodes; their scatter is the noise
FLIPS = 10_000  # of the test for bias
FIT_EPOCHS = 20  # of a value network that the run does not have
NO_GRADIENT = (
    "no gradient is left to measure: its mean is 0 within its noise, as at an optimum; take more "
    "--episodes, or a run that was stopped earlier"
)


@dataclass(frozen=True)
class Estimate:
    """What one estimator's gradient is like; norms are over all parameters of the policy."""

    name: str
    unbiased: bool  # by theory, for the objective of its row's gamma^t
    norm: float  # |E g|
    variance: float  # tr Cov of one episode's gradient
    signal_to_noise: float  # |E g|^2 / tr Cov, at the run's batch size
    cosine: float  # of a batch's gradient with the reference's mean, expected at that size
    alignment: float  # the same for an infinite batch: below 1 is bias of direction
    bias: float  # |E g - E reference| / |E reference|; 0 unless it is certain (p < 0.001)
    critical_steps: float  # batch size in environment steps at which signal_to_noise is 1


@dataclass(frozen=True)
class Diagnosis:
    """The table of estimators, and what it was measured on."""

    estimates: tuple[Estimate, ...]
    env: str
    episodes: int
    mean_length: float
    batch_steps: float  # environment steps per update of the run
    reference: str
    has_gradient: bool  # false: what there is of a mean gradient is no larger than its noise

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, which has no infinity: what is not finite is None."""

        def finite(value: object) -> object:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        rows = [
            {name: finite(value) for name, value in asdict(row).items()} for row in self.estimates
        ]
        return asdict(self) | {"estimates": rows}

    @property
    def best(self) -> Estimate:
        """The unbiased estimator with the least variance."""
        return min((e for e in self.estimates if e.unbiased), key=lambda e: e.variance)

    def __str__(self) -> str:
        widths = 28, 9, 10, 10, 8, 7, 14
        head = "estimator", "unbiased", "variance", "signal", "cosine", "bias", "critical batch"
        lines = ["  ".join(word.rjust(w) for word, w in zip(head, widths, strict=True))]
        for e in self.estimates:
            cells: tuple[str, ...] = (
                e.name,
                "yes" if e.unbiased else "no",
                f"{e.variance:.3g}",
                f"{e.signal_to_noise:.3g}",
                "-" if math.isnan(e.cosine) else f"{e.cosine:.2f}",
                f"{100 * e.bias:.0f} %" if e.bias else "-",
                f"{e.critical_steps:,.0f}" if math.isfinite(e.critical_steps) else "all noise",
            )
            if not e.variance:  # nothing varies, so there is nothing to compare
                cells = (*cells[:2], *["-"] * 5)
            lines.append("  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)))
        lines += [
            "",
            f"{self.episodes} episodes of {self.mean_length:.0f} steps on {self.env}; signal (to "
            f"noise) and cosine at {self.batch_steps:,.0f} steps per update; reference: "
            f"{self.reference}",
            f"least noise without bias: {self.best.name}, whose signal is as strong as its noise "
            f"in a batch of {self.best.critical_steps:,.0f} steps"
            if self.has_gradient
            else NO_GRADIENT,
        ]
        return "\n".join(lines)


@files.staying()
def diagnose(
    path: str | Path,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    episodes: int = 256,
    seed: int = 0,
    device: Device = "cpu",
    parts: UserParts = NO_PARTS,
) -> Diagnosis:
    """Measure the gradient of a run at its newest checkpoint, for every baseline.

    It plays as many episodes for calibration as for the gradients. For `env`, `env_kwargs`,
    `device` and `parts` see `resume`. FileError where there is no run, UsageError where it has no
    checkpoint, or its environment is not known.
    """
    if episodes < 4:
        raise UsageError(f"episodes: expected at least 4 to compare, got {episodes}")
    folder = open_run(Path(path))
    recipe = recipe_of_run(folder, parts, env_kwargs)
    schedules = [name for name in recipe.learner.names() if name.endswith(SCHEDULE)]
    constant = {f"learner.{name}": "constant" for name in schedules}  # nothing learns by them here
    recipe = override(recipe, {"device": device, **constant})
    saved, _ = newest_checkpoint(folder.checkpoints)
    if saved is None:
        raise UsageError(f"{path}: expected a checkpoint to diagnose, got none; train it further")
    own = recipe.environment.id
    made, recipe = with_record(environment_to_make(own, env, folder.path), recipe)
    copies = min(episodes // 2, 32)  # at least two rounds
    options = environment_options(made, recipe)
    envs, _ = make_envs(made, copies, seed=seed_sequence(seed, "evaluation"), **options)
    with fresh_torch(recipe.threads), closing(envs):
        policy = make_policy(envs, recipe, parts)
        learner = make_learner(policy, recipe, parts)
        with fitting(saved.path):
            restore_tensors(learner, saved.state["learner"], "learner")
        check_spaces(policy, envs)
        actions = seed_sequence(seed, "actions")
        collector = Collector(envs, policy, actions, log_prob=False, warn=lambda _: None)
        rounds = max(2, math.ceil(episodes / copies))
        calibration = [collector.episodes(1).to(policy.device) for _ in range(rounds)]
        rules = variants(learner, recipe, calibration)
        size = max(1, rounds * copies // GROUPS)  # episodes per group
        gradients, steps = [], 0
        for _ in range(rounds):
            rollout = collector.episodes(1).to(policy.device)
            steps += rollout.num_steps
            gradients.append(group_gradients(learner, list(rules.values()), rollout, size))
    mean_length = steps / (rounds * copies)
    per_env = recipe.steps_per_env
    if recipe.rollout.episodes_per_env is not None:
        per_env = round(recipe.rollout.episodes_per_env * mean_length)
    batch_steps = per_env * recipe.rollout.num_envs
    found = measured(rules, torch.cat(gradients), size, mean_length, batch_steps)
    return Diagnosis(
        env=own, episodes=rounds * copies, mean_length=mean_length, batch_steps=batch_steps, **found
    )


def variants(
    learner: Learner, recipe: Recipe, calibration: list[Rollout]
) -> dict[str, AdvantageRule]:
    """Every estimator to compare, by name; what learns has learned from the calibration."""
    own = learner.advantage_rule.gae_lambda
    lambdas = sorted(each for each in {*LAMBDAS, own} if each is not None)
    settings: list[tuple[str, float | None, bool]] = [
        *((name, None, True) for name in (*STATISTICAL, "linear", "value")),
        *(("value", gae_lambda, True) for gae_lambda in lambdas),
    ]
    if recipe.learner.gamma < 1.0:  # else gamma^t is 1
        settings += [("value", None, False), ("value", own, False)]
    baselines = {name: fitted(name, learner, recipe, calibration) for name, _, _ in settings}
    rules = {}
    for name, gae_lambda, weighted in settings:
        label = name if gae_lambda is None else f"{name}, GAE {gae_lambda:g}"
        label = label if weighted else f"{label}, no gamma^t"
        rules[label] = AdvantageRule(
            baselines[name], episodes_settings(recipe, gae_lambda, gamma_weight=weighted)
        )
    return rules


def episodes_settings(recipe: Recipe, gae_lambda: float | None, **others: Any) -> LearnerSettings:
    """How an estimator gets the advantages of whole episodes."""
    return LearnerSettings(
        gamma=recipe.learner.gamma,
        gae_lambda=gae_lambda,
        truncated_return="terminal" if gae_lambda is None else "bootstrap",
        average="episodes",
        normalize_advantages=False,
        **others,
    )


def fitted(name: str, learner: Learner, recipe: Recipe, calibration: list[Rollout]) -> Baseline:
    """The run's own value network, or a baseline of that name fitted on the calibration."""
    if name == recipe.learner.baseline and isinstance(learner.baseline, NetworkValue):
        return learner.baseline
    settings = episodes_settings(
        recipe,
        None,
        value_hidden=recipe.policy.hidden,
        value_learning_rate=recipe.learner.value_learning_rate,
        num_value_epochs=1,
        num_value_minibatches=4,
    )
    generator = generator_from(seed_sequence(0, "learner"))
    baseline = make_baseline(name, learner.policy, settings, generator)
    rule = AdvantageRule(baseline, settings)
    for _ in range(FIT_EPOCHS if name == "value" else 1):
        for rollout in calibration:
            advantages = rule(rollout, learner.scaled_reward(rollout))
            baseline.update(rollout, advantages.returns, advantages.weight)
    return baseline


def group_gradients(
    learner: Learner, rules: list[AdvantageRule], rollout: Rollout, size: int
) -> Tensor:
    """`[G, V, P]`: mean gradient of each group of `size` episodes, by each of V rules.

    The rules differ in what multiplies grad log pi, so one batched backward pass serves them all.
    The rollout has one whole episode per environment.
    """
    reward = learner.scaled_reward(rollout)
    advantages = [rule(rollout, reward) for rule in rules]
    factors = torch.stack([a.normalized * a.weight for a in advantages])  # [V, T, N]
    parameters = [p for p in learner.policy.parameters() if p.requires_grad]
    in_order = learner.policy.has_memory
    num_envs = reward.shape[1]
    groups = []
    for first in range(0, num_envs - size + 1, size):
        envs = slice(first, first + size)
        counts = rollout.valid[:, envs]  # [T, size]
        obs, action = rollout.obs[:-1, envs], rollout.action[:, envs]
        if in_order:
            carry = map_carry(lambda part, envs=envs: part[envs], rollout.carry)  # type: ignore[misc]
            distribution, _ = learner.policy(obs, carry, rollout.episode_start[:-1, envs])
            log_prob = distribution.log_prob(action)  # [T, size]
        else:
            distribution, _ = learner.policy(obs[counts])
            log_prob = distribution.log_prob(action[counts])  # [S]
        factor = factors[:, :, envs] * (num_envs / size)  # [V, T, size]
        grads = torch.autograd.grad(
            log_prob,
            parameters,
            grad_outputs=factor if in_order else factor[:, counts],
            is_grads_batched=True,
            allow_unused=True,
        )
        parts = [
            p.new_zeros(len(rules), p.numel()) if grad is None else grad.reshape(len(rules), -1)
            for grad, p in zip(grads, parameters, strict=True)
        ]
        groups.append(torch.cat(parts, dim=1))
    return torch.stack(groups).cpu()


def measured(
    rules: dict[str, AdvantageRule],
    gradients: Tensor,
    size: int,
    mean_length: float,
    batch_steps: int,
) -> dict[str, Any]:
    """Estimates from the scatter of group gradients `[G, V, P]`, with the noise taken out of norms.

    With G groups, E|mean|^2 = |E g|^2 + tr Cov / G, and likewise for inner products and differences
    of two estimators on the same episodes.
    """
    gradients = gradients.double()
    mean = gradients.mean(dim=0)  # [V, P]
    centered = (gradients - mean).transpose(0, 1).flatten(1)  # [V, G * P]
    covariance = centered @ centered.T / (len(gradients) - 1)  # [V, V] tr Cov(g_i, g_j)
    product = (mean @ mean.T - covariance / len(gradients)).tolist()  # [V][V] E g_i . E g_j
    variance = (covariance.diagonal() * size).tolist()
    unbiased = [rule.settings.gamma_weight and rule.gae_lambda is None for rule in rules.values()]
    reference = min((v for v, exact in enumerate(unbiased) if exact), key=lambda v: variance[v])
    reference_square = max(product[reference][reference], 0.0)
    estimates = []
    for v, name in enumerate(rules):
        square, inner = product[v][v], product[v][reference]
        noise = variance[v] * mean_length / batch_steps
        gap = square - 2 * inner + reference_square
        certain = reference_square > 0 and differs(gradients[:, v] - gradients[:, reference])
        length = math.sqrt(reference_square * max(square, 0.0))
        alignment = min(1.0, inner / length) if length else math.nan
        ratio = square / noise if noise else math.inf
        estimates.append(
            Estimate(
                name=name,
                unbiased=unbiased[v],
                norm=math.sqrt(max(square, 0.0)),
                variance=variance[v],
                signal_to_noise=ratio,
                cosine=alignment / math.sqrt(1.0 + 1.0 / ratio) if ratio > 0 else 0.0,
                alignment=alignment,
                bias=math.sqrt(max(gap, 0.0) / reference_square) if certain else 0.0,
                critical_steps=variance[v] / square * mean_length if square > 0 else math.inf,
            )
        )
    return {
        "estimates": tuple(estimates),
        "reference": list(rules)[reference],
        "has_gradient": reference_square > 0,
    }


def differs(differences: Tensor) -> bool:
    """Whether the mean of `[G, P]` is not 0, by a sign-flip test with p < 0.001 (Fisher 1935).

    Were it 0, a group's difference would be as likely with the other sign.
    """
    gram = differences @ differences.T  # [G, G]
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (FLIPS, len(gram)), generator=generator) * 2.0 - 1.0
    flipped = ((signs.to(gram.dtype) @ gram) * signs).sum(dim=1)  # [FLIPS] squared norms
    return bool((flipped >= gram.sum()).sum() < FLIPS / 1000)


def plot(diagnosis: Diagnosis, path: Path) -> None:
    """Draw how well a batch's gradient points, against its size; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    sizes = torch.logspace(1, 6, 100).tolist()
    drawn = [e for e in diagnosis.estimates if math.isfinite(e.critical_steps) and e.variance]
    if not diagnosis.has_gradient:
        drawn = []
        axes.text(0.5, 0.5, NO_GRADIENT, transform=axes.transAxes, ha="center", wrap=True)
    for e in sorted(drawn, key=lambda e: -e.cosine):
        bias = f", bias {100 * e.bias:.0f} %" if e.bias else ""
        axes.semilogx(
            sizes,
            [e.alignment / math.sqrt(1.0 + e.critical_steps / size) for size in sizes],
            linestyle="-" if e.unbiased else "--",
            label=f"{e.name}{bias}",
        )
    axes.axvline(diagnosis.batch_steps, color="gray", linewidth=0.8, linestyle=":")
    axes.annotate(" this run", (diagnosis.batch_steps, 0.02), color="gray")
    axes.set_xlabel("environment steps per update")
    axes.set_ylabel("expected cosine with the policy gradient")
    axes.set_ylim(0.0, 1.02)
    axes.set_title(
        f"{diagnosis.env}: how well a batch's gradient points (solid: unbiased, dashed: biased)"
    )
    if drawn:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
