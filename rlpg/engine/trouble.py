"""Warnings, each once, when the metrics of a run say that it is in trouble."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from rlpg.engine.evaluator import Evaluation
from rlpg.errors import decimals
from rlpg.policies.heads import Head
from rlpg.runs.recipe import Recipe

ENTRIES = 20  # of the log that a verdict is the mean of
LITTLE = 0.1  # deviation of the episodes' returns, in mean returns: less leaves nothing to explain
EPISODES = 50  # the first and the last ones tell whether a policy has learned
QUARTER = 0.25  # share of the budget after which the value network should predict something
LEAST = 0.05  # share of the returns' variance that is something
HALF = 0.5  # share of the budget before which a policy should still explore
LATE = 0.9  # share of the budget after which the most likely actions should be good ones
GAIN = 2.0  # standard deviations of the first returns
SURE = 3.0  # standard errors between two evaluations
GROWN, SHRUNK = math.log(3.0), math.log(20.0)  # deviation of an action: times, and divided by
MOST_KL = 3.0  # times the target
MOST_CLIPPED = 0.65  # of the ratios; PPO on HalfCheetah works well with up to 0.6


class Trouble:
    """Called with every entry of the log; says what is wrong, once, and which setting to try.

    Entropies are compared with the first one that this process has seen.
    """

    def __init__(self, recipe: Recipe, head: Head, warn: Callable[[str], None]) -> None:
        self._recipe, self._warn = recipe, warn
        has_rate = "learning_rate" in recipe.learner.names()
        self._rate = "learning_rate" if has_rate else "max_kl"  # the setting of a step's length
        self._is_discrete, self._numbers = head.is_discrete, max(math.prod(head.action_shape), 1)
        self._recent: dict[str, deque[float]] = {}
        self._first_returns: list[float] = []
        self._returns: deque[float] = deque(maxlen=EPISODES)
        self._first: float | None = None  # entropy
        self._told: set[str] = set()

    def episodes(self, returns: Sequence[float]) -> None:
        """Episodes that ended before the next entry."""
        self._returns.extend(returns)
        self._first_returns.extend(returns[: EPISODES - len(self._first_returns)])

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at an entry of the log, by tag."""
        for tag, value in metrics.items():
            if math.isfinite(value):
                self._recent.setdefault(tag, deque(maxlen=ENTRIES)).append(value)
        if self._first is None:
            self._first = self._recent.get("train/entropy", [None])[0]
        share = min(step / self._recipe.total_steps, 1.0)  # the last rollout may go beyond
        self._tell("value", step, self._value(share))
        self._tell("step", step, self._step())
        self._tell("clip", step, self._clip())
        self._tell("entropy", step, self._entropy(share))

    def evaluated(self, step: int, evaluations: Mapping[str, Evaluation]) -> None:
        """Compare the most likely actions with sampled ones, where both were evaluated."""
        likely, sampled = map(evaluations.get, ("eval", "eval_stochastic"))
        late = step >= LATE * self._recipe.total_steps
        if not (late and likely and sampled and len(self._first_returns) == EPISODES):
            return
        halfway = (fmean(self._first_returns) + sampled.mean) / 2
        error = math.hypot(*(e.std / math.sqrt(len(e.returns)) for e in (likely, sampled)))
        is_lost = likely.mean < min(halfway, sampled.mean - SURE * error)
        if is_lost and self._is_gain(sampled.mean):
            self._tell(
                "mode",
                step,
                f"the most likely actions return {decimals(likely.mean)}, sampled ones "
                f"{decimals(sampled.mean)}; train for longer, or act by sampling "
                "(deterministic=False; rlpg evaluate --stochastic)",
            )

    def _is_gain(self, mean: float) -> bool:
        """Whether a mean return is clearly above those of the first episodes."""
        return mean > fmean(self._first_returns) + GAIN * pstdev(self._first_returns)

    def _tell(self, name: str, step: int, verdict: str) -> None:
        if verdict and name not in self._told:
            self._told.add(name)
            self._warn(f"step {step:,}: {verdict}")

    def _mean(self, tag: str) -> float:
        """Over the last entries; NaN before there are enough."""
        values = self._recent.get(tag, ())
        return fmean(values) if len(values) == ENTRIES else math.nan

    def _setting(self, name: str) -> Any:
        return getattr(self._recipe.learner, name, None)

    def _value(self, share: float) -> str:
        explained = self._mean("train/explained_variance")
        if share < QUARTER or self._setting("baseline") != "value" or not explained < LEAST:
            return ""
        returns = self._returns
        if len(returns) > 1 and pstdev(returns) <= LITTLE * abs(fmean(returns)):
            return ""  # a task that is solved, or a reward that is never found
        if returns and self._is_gain(fmean(returns)):
            return ""  # it learns all the same
        advice = f"learner.value_coef (it is {self._setting('value_coef')})"
        if not self._recipe.policy.shared_torso:  # it refuses these
            advice = f"learner.value_learning_rate (it is {self._setting('value_learning_rate')})"
            advice += " or more learner.num_value_epochs"
        return (
            f"the value network explains {max(explained, 0.0):.0%} of the returns' variance after "
            f"{share:.0%} of the budget; try a higher {advice}"
        )

    def _step(self) -> str:
        names = ("target_kl", "desired_kl", "max_kl")
        target = next(((name, v) for name in names if (v := self._setting(name))), None)
        kl = self._mean("train/approx_kl")
        if target is None or not kl > MOST_KL * target[1]:
            return ""
        return (
            f"updates move the policy by a KL divergence of {kl:.2g}, learner.{target[0]} is "
            f"{target[1]:g}; try a lower learner.{self._rate} (it is {self._setting(self._rate)})"
        )

    def _clip(self) -> str:
        clipped = self._mean("train/clip_fraction")
        if not clipped > MOST_CLIPPED:
            return ""
        return (
            f"{clipped:.0%} of the probability ratios are out of the clip range; try a lower "
            f"learner.learning_rate (it is {self._setting('learning_rate')}) or fewer "
            f"learner.num_epochs (it is {self._setting('num_epochs')})"
        )

    def _entropy(self, share: float) -> str:
        """Of choices it falls to 0; of a Gaussian it is log(std) plus a constant, per number."""
        now, first, coef = self._mean("train/entropy"), self._first, self._setting("entropy_coef")
        if first is None or math.isnan(now):
            return ""
        grown = (now - first) / self._numbers
        if share < HALF and (now < 0.01 * first if self._is_discrete else grown < -SHRUNK):
            return (
                f"the policy's entropy has collapsed from {first:.2f} to {now:.2f} after "
                f"{share:.0%} of the budget; try a higher learner.entropy_coef (it is {coef}) or a "
                f"lower learner.{self._rate}"
            )
        if not self._is_discrete and grown > GROWN:
            return (
                f"the standard deviation of the actions has grown {math.exp(grown):.1f}-fold; try "
                f"a lower learner.entropy_coef (it is {coef}) or policy.log_std_init"
            )
        return ""
