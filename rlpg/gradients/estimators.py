"""Monte-Carlo gradient estimators as pure functions: tensors in, surrogate terms out.

The contract of a surrogate: its *value* is the Monte-Carlo estimate of the objective and its
*gradient* is the estimator. `score_function` and `entropy`-like corrections have the value 0, so
that they are simply added to the estimate of the objective:

    surrogate = objective.detach() + score_function(log_prob, advantage, weight=weight)

Everything is maximised; who minimises puts the minus sign in front of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpg.errors import EstimatorError


def score_function(log_prob: Tensor, advantage: Tensor, *, weight: Tensor) -> Tensor:
    """`sum_i w_i A_i (log p_i - [log p_i])`: value 0, gradient `sum_i w_i A_i grad log p_i`.

    Unbiased for the gradient of `E[sum_i w_i R_i]` if A is the return R less anything that does not
    depend on the sample it is subtracted from. Variance grows with the number of samples that share
    a return; a baseline takes out what they have in common. Works for any distribution, also where
    the return is not differentiable.

    Args:
        log_prob: any shape, `log p(sample)` with its gradient; the sample itself carries none.
        advantage: same shape; a gradient it carries is ignored.
        weight: same shape. `valid / valid.sum()` is the mean over steps,
            `valid * gamma**time / num_episodes` the discounted objective per episode. Where it is
            0, the other two may hold anything finite or not.

    Source: Williams 1992; the name follows Mohamed et al. 2020, sec. 4.
    """
    if not log_prob.shape == advantage.shape == weight.shape:
        raise EstimatorError(
            f"score_function: expected log_prob, advantage and weight of one shape, got "
            f"{list(log_prob.shape)}, {list(advantage.shape)}, {list(weight.shape)}; "
            "sum log_prob over the action's dimensions only"
        )
    if not log_prob.requires_grad and torch.is_grad_enabled():
        raise EstimatorError(
            "score_function: expected a log_prob that carries a gradient, got one without; "
            "recompute it from the stored sample with gradients enabled"
        )
    counts = weight != 0
    credit = torch.where(counts, weight * advantage, 0.0).detach()
    masked = torch.where(counts, log_prob, 0.0)
    return ((masked - masked.detach()) * credit).sum()
