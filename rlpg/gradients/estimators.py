"""Monte-Carlo gradient estimators as pure functions: tensors in, surrogate terms out.

The contract of a surrogate: its *value* is the Monte-Carlo estimate of the objective and its
*gradient* is the estimator. `score_function` has the value 0, so that it is simply added to the
estimate of the objective:

    surrogate = objective.detach() + score_function(log_prob, advantage, weight=weight)

Everything is maximized; who minimizes puts the minus sign in front of the whole.
"""

from __future__ import annotations

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
    shape_of_weight = weight.shape if isinstance(weight, Tensor) else log_prob.shape
    if not log_prob.shape == advantage.shape == shape_of_weight:
        raise EstimatorError(
            f"score_function: expected log_prob, advantage and weight of one shape, got "
            f"{list(log_prob.shape)}, {list(advantage.shape)}, {list(shape_of_weight)}; "
            "sum log_prob over the action's dimensions only"
        )
    if not log_prob.requires_grad and torch.is_grad_enabled():
        raise EstimatorError(
            "score_function: expected a log_prob that carries a gradient, got one without; "
            "recompute it from the stored sample with gradients enabled"
        )
    if not isinstance(weight, Tensor):
        credit = (weight * advantage).detach()
        return ((log_prob - log_prob.detach()) * credit).sum()
    counts = weight != 0
    credit = torch.where(counts, weight * advantage, 0.0).detach()
    masked = torch.where(counts, log_prob, 0.0)
    return ((masked - masked.detach()) * credit).sum()


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
    known: tuple[type[Distribution], ...] = (Bernoulli, OneHotCategorical)
    if not isinstance(distribution, known):
        raise EstimatorError(
            "biased_straight_through: expected Bernoulli or OneHotCategorical, got "
            f"{type(distribution).__name__}; use how='score' or 'pathwise'"
        )
    sample = distribution.sample()
    return sample + (distribution.mean - distribution.mean.detach())


def biased_gumbel_softmax(distribution: Distribution, temperature: float) -> Tensor:
    """A relaxed, reparametrized stand-in for a discrete sample. **Biased** in value and gradient.

    The bias vanishes as the temperature goes to 0, and the variance then explodes.

    Args:
        distribution: Bernoulli or OneHotCategorical.
        temperature: > 0.

    Source: Maddison et al. 2017, Jang et al. 2017.
    """
    heat = torch.tensor(temperature)
    if isinstance(distribution, Bernoulli):
        return RelaxedBernoulli(heat, logits=distribution.logits).rsample()
    if isinstance(distribution, OneHotCategorical):
        return RelaxedOneHotCategorical(heat, logits=distribution.logits).rsample()
    raise EstimatorError(
        "biased_gumbel_softmax: expected Bernoulli or OneHotCategorical, got "
        f"{type(distribution).__name__}; other distributions have no relaxation here"
    )
