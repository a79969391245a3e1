"""Monte-Carlo gradient estimators as pure functions: tensors in, surrogate terms out.

The contract of a surrogate: its *value* is the Monte-Carlo estimate of the objective and its
*gradient* is the estimator. `score_function` has the value 0, so that it is simply added to the
estimate of the objective:

    surrogate = objective.detach() + score_function(log_prob, advantage, weight=weight)

Everything is maximized. To minimize, put a minus sign in front of the whole surrogate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    OneHotCategorical,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
)

from rlpg.errors import EstimatorError

_LARGEST_LOG_RATIO = 20.0


def score_function(log_prob: Tensor, advantage: Tensor, *, weight: Tensor | float) -> Tensor:
    """`sum_i w_i A_i (log p_i - [log p_i])`: value 0, gradient `sum_i w_i A_i grad log p_i`.

    Unbiased for the gradient of `E[sum_i w_i R_i]` if A is the return R less anything that does not
    depend on the sample it is subtracted from. Variance grows with the number of samples that share
    a return; a baseline takes out what they have in common. Works for any distribution, also where
    the return is not differentiable.

    Args:
        log_prob: any shape, `log p(sample)` with its gradient; the sample itself carries none.
        advantage: same shape; a gradient it carries is ignored.
        weight: a number, or same shape. `valid / valid.sum()` is the mean over steps,
            `valid * gamma**time / num_episodes` the discounted objective per episode. Where it is
            0, the other two may hold anything finite or not.

    Source: Williams 1992; the name follows Mohamed et al. 2020, sec. 4.
    """
    log_prob, advantage = _counted("score_function", weight, log_prob, advantage)
    return ((log_prob - log_prob.detach()) * (weight * advantage).detach()).sum()


def likelihood_ratio(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, weight: Tensor | float
) -> Tensor:
    """`sum_i w_i A_i r_i` with `r_i = exp(log p_i - log q_i)`, where the samples come from q.

    One sample per return, drawn from q: unbiased for `E_p[w R]` and its gradient, whatever p; its
    variance grows with `E_q r^2`. Steps of episodes: states still come from q, and every ratio
    stands for its own step only, so the gradient is that of the objective at p = q alone, where it
    equals `score_function`'s; further away it is biased by what the step changes in later states,
    which is of second order in the distance between p and q.

    Args:
        log_prob: any shape, `log p(sample)` with its gradient.
        old_log_prob: same shape, `log q(sample)`; a gradient is ignored.
        advantage, weight: as in `score_function`; a gradient is ignored.

    Source: Kakade & Langford 2002, eq. 4 to 6; Schulman et al. 2017, eq. 6 ("L^CPI").
    """
    log_prob, advantage, old_log_prob = _counted(
        "likelihood_ratio", weight, log_prob, advantage, old_log_prob
    )
    ratio = torch.exp(log_prob - old_log_prob.detach())
    return ((weight * advantage).detach() * ratio).sum()


def clipped_likelihood_ratio(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    *,
    clip_range: float,
    weight: Tensor | float,
) -> Tensor:
    """`sum_i w_i min(r_i A_i, clip(r_i, 1 - c, 1 + c) A_i)`: moving a ratio further gains nothing.

    **Biased** wherever a ratio has left the range in the direction that its advantage asks for:
    that sample's gradient is 0 and the value stops growing, which is the point. At r = 1 its
    gradient is `score_function`'s. The value is at most `likelihood_ratio`'s (for weights >= 0).

    A ratio above e^20 counts as e^20, in value and gradient, so that none overflows: where a sample
    is clipped that changes nothing, and elsewhere the gradient keeps its direction.

    Args:
        log_prob, old_log_prob, advantage, weight: as in `likelihood_ratio`.
        clip_range: c > 0.

    Source: Schulman et al. 2017, eq. 7.
    """
    if not clip_range > 0:
        raise EstimatorError(
            f"clip_range: expected a number above 0, got {clip_range}; 0.2 is usual"
        )
    log_prob, advantage, old_log_prob = _counted(
        "clipped_likelihood_ratio", weight, log_prob, advantage.detach(), old_log_prob
    )
    old = torch.maximum(old_log_prob.detach(), log_prob.detach() - _LARGEST_LOG_RATIO)
    ratio = torch.exp(log_prob - old)
    most = advantage + clip_range * advantage.abs()  # clip(r) A, where it is less than r A
    weight = weight.detach() if isinstance(weight, Tensor) else weight
    return (weight * torch.minimum(ratio * advantage, most)).sum()


def _counted(
    function: str, weight: Tensor | float, log_prob: Tensor, *others: Tensor
) -> list[Tensor]:
    """log_prob and the others, 0 where the weight is 0; refuses shapes that differ."""
    shapes = [t.shape for t in (log_prob, *others, weight) if isinstance(t, Tensor)]
    if any(shape != log_prob.shape for shape in shapes):
        raise EstimatorError(
            f"{function}: expected log_prob, advantage and weight of one shape, got "
            f"{', '.join(str(list(shape)) for shape in shapes)}; sum log_prob over the action's "
            "dimensions only"
        )
    if not log_prob.requires_grad and torch.is_grad_enabled():
        raise EstimatorError(
            f"{function}: expected a log_prob that carries a gradient, got one without; "
            "recompute it from the stored sample with gradients enabled"
        )
    # Only a CPU can tell at once whether there is nothing to leave out.
    if not isinstance(weight, Tensor) or (weight.device.type == "cpu" and bool(weight.all())):
        return [log_prob, *others]
    return [torch.where(weight != 0, part, 0.0) for part in (log_prob, *others)]


def log_prob_of(distribution: Distribution, sample: Tensor) -> Tensor:
    """`log p(sample)`, refused for a sample that carries a gradient.

    The gradient of `log p(x(theta); theta)` is not the score: along the path of x the part the
    score needs cancels (for a Gaussian's mean it is exactly 0).
    """
    if sample.requires_grad:
        raise EstimatorError(
            "log_prob_of: expected a sample without a gradient, got a reparametrized one; "
            "draw with sample() for the score function, or leave log_prob out and use the path"
        )
    return distribution.log_prob(sample)


def expectation(probs: Tensor, values: Tensor) -> Tensor:
    """`sum_k p_k f(x_k)` over dim 0: the exact mean over an enumerated support, and its gradient.

    The all-action gradient when x is an action. No variance from x; costs one evaluation of f per
    point of the support.

    Args:
        probs, values: `[K, ...]`, broadcast against each other; both keep their gradients.
    """
    return (probs * values).sum(0)


def importance_weighted_bound(log_weight: Tensor, log_prob: Tensor) -> Tensor:
    """`[N]` bounds `L = log 1/K sum_k w_k`, whose gradient is the VIMCO estimator.

    Unbiased for the gradient of `E[L]`, the samples k drawn independently from the density of
    `log_prob`: what L depends on is differentiated, and each sample's score is paid with L less a
    baseline that leaves the sample out, `L` with `log w_k` replaced by the mean of the others'.

    Args:
        log_weight: `[K, N]` of K >= 2 samples, `log p(x, z_k) - log q(z_k)` with its gradient;
            -inf where p is 0, but for two of the K at least.
        log_prob: `[K, N]`, `log q(z_k)` with its gradient; the samples themselves carry none.

    Source: Mnih & Rezende 2016, eq. 7 and 8.
    """
    if log_weight.shape != log_prob.shape or log_prob.dim() != 2 or len(log_prob) < 2:
        raise EstimatorError(
            "importance_weighted_bound: expected log_weight and log_prob [K, N] with K >= 2, got "
            f"{list(log_weight.shape)} and {list(log_prob.shape)}; put the samples of an item first"
        )
    num = len(log_weight)
    fixed = log_weight.detach()
    left_out = torch.eye(num, dtype=torch.bool, device=fixed.device)[:, :, None]  # [K, K, 1]
    others = torch.where(left_out, 0.0, fixed).sum(1) / (num - 1)  # log of their geometric mean
    without = torch.where(left_out, others[:, None], fixed)  # [K, K, N]
    bound = log_weight.logsumexp(0) - math.log(num)
    credit = bound.detach() - (without.logsumexp(1) - math.log(num))  # [K, N]
    return bound + (credit * (log_prob - log_prob.detach())).sum(0)


def magic_box(log_prob: Tensor) -> Tensor:
    """`exp(log p - [log p])`: the value 1, whose derivatives of any order carry the score.

    `f * magic_box(sum of log_prob of all f depends on)` can be differentiated repeatedly.

    Source: Foerster et al. 2018 (DiCE), sec. 4.
    """
    return torch.exp(log_prob - log_prob.detach())


def biased_straight_through(distribution: Distribution) -> Tensor:
    """A discrete sample whose gradient is that of its mean. **Biased**: exact for affine f only.

    Args:
        distribution: Bernoulli or OneHotCategorical.

    Source: Bengio et al. 2013.
    """
    if not isinstance(distribution, Bernoulli | OneHotCategorical):
        raise _unknown("biased_straight_through", distribution)
    sample: Tensor = distribution.sample()  # type: ignore[no-untyped-call]
    return sample + (distribution.mean - distribution.mean.detach())


def biased_gumbel_softmax(distribution: Distribution, temperature: float) -> Tensor:
    """A relaxed, reparametrized stand-in for a discrete sample. **Biased** in value and gradient.

    The bias vanishes as the temperature goes to 0, and the variance then explodes.

    Args:
        distribution: Bernoulli or OneHotCategorical.
        temperature: > 0.

    Source: Maddison et al. 2017, Jang et al. 2017.
    """
    if not temperature > 0:
        raise EstimatorError(
            f"biased_gumbel_softmax: expected a temperature above 0, got {temperature}"
        )
    heat = torch.tensor(temperature)
    if isinstance(distribution, Bernoulli):
        return RelaxedBernoulli(heat, logits=distribution.logits).rsample()
    if isinstance(distribution, OneHotCategorical):
        return RelaxedOneHotCategorical(heat, logits=distribution.logits).rsample()
    raise _unknown("biased_gumbel_softmax", distribution)


def _unknown(function: str, distribution: Distribution) -> EstimatorError:
    got = type(distribution).__name__
    return EstimatorError(f"{function}: expected Bernoulli or OneHotCategorical, got {got}")
