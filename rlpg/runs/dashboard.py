"""What TensorBoard needs to explain a run: the layout of its cards, the settings as
hyperparameters, a description of each tag, histograms. All as TensorBoard's protocol buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

BINS: Final = 30  # of a histogram

# By category: the title of a card, and the tags on it as regular expressions.
CARDS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "Learning": {
        "return": ("rollout/ep_rew_mean", r"eval\w*/mean_reward"),
        "episode length": ("rollout/ep_len_mean", r"eval\w*/mean_ep_length"),
        "parts of the reward": (r"rollout/reward_\w+",),
        "explained variance": ("train/explained_variance",),
        "value loss": ("train/value_loss",),
    },
    "Gradient": {
        "norm": ("gradient/norm",),
        "signal to noise": ("gradient/signal_to_noise",),
        "variance removed by the baseline": ("gradient/variance_removed_by_baseline",),
    },
    "Policy": {
        "entropy": ("train/entropy",),
        "KL divergence of an update": ("train/approx_kl",),
        "clip fraction": ("train/clip_fraction",),
        "learning rate": ("train/learning_rate",),
    },
    "Time": {
        "steps per second": ("time/fps",),
        "shares of the time": (r"time/\w+_share",),
    },
}

DESCRIPTIONS: Final[Mapping[str, str]] = {
    "rollout/ep_rew_mean": "Mean return of the last 100 training episodes, actions sampled.",
    "rollout/ep_len_mean": "Mean number of steps of the last 100 training episodes.",
    "rollout/actions": "Actions as the policy drew them, before clipping for the environment.",
    "eval/mean_reward": "Mean return of an evaluation with deterministic actions.",
    "eval/mean_ep_length": "Mean number of steps of the evaluation's episodes.",
    "eval_stochastic/mean_reward": "Mean return of an evaluation with sampled actions.",
    "eval_stochastic/mean_ep_length": "Mean number of steps of its episodes.",
    "train/policy_loss": "Minus the weighted mean advantage before the update. **It says nothing "
    "about progress**: it is 0 up to rounding where advantages are normalized.",
    "train/explained_variance": "How well the baseline predicts the returns, before it learns from "
    "them: 1 is perfect, 0 no better than a constant, below 0 worse.",
    "train/value_loss": "Squared error of the value network's last minibatch, in scaled rewards.",
    "train/value_errors": "Return minus predicted value for each step, in scaled rewards.",
    "train/advantages": "Advantages as the surrogate takes them, of the last update's rollout.",
    "train/entropy": "How random the policy is. Falling slowly is healthy; near 0 it explores no "
    "more (`learner.entropy_coef`).",
    "train/approx_kl": "How far the update moved the policy. Above about 0.05 steps are large "
    "(`learner.learning_rate`).",
    "train/learning_rate": "Of the policy, with its schedule.",
    "train/clip_fraction": "Share of probability ratios out of the clip range. Above 0.4 most "
    "samples no longer count (`learner.learning_rate`, `learner.num_epochs`).",
    "train/num_epochs": "Passes over the rollout; fewer than the setting where `target_kl` stops.",
    "train/line_search_steps": "How often the step was shortened.",
    "gradient/norm": "Length of the gradient before clipping (`learner.max_grad_norm`).",
    "gradient/signal_to_noise": "Squared mean over variance of the batch's gradient. Below 0 it is "
    "all noise: more steps or environments per update help.",
    "gradient/variance_removed_by_baseline": "Share of the gradient's second moment that the "
    "baseline took away. Below 0 the baseline does harm.",
    "time/fps": "Environment steps per second; evaluating and saving are left out.",
    "time/env_share": "Share of the time in the environment.",
    "time/policy_share": "Share of the time in choosing actions.",
    "time/learn_share": "Share of the time in learning.",
}
REWARD_PART: Final = "Mean per step of this entry of the environment's `info`."


def layout() -> Any:
    """The summary that arranges the cards of the tab Custom Scalars."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    categories = [
        layout_pb2.Category(
            title=name,
            chart=[
                layout_pb2.Chart(
                    title=title,
                    multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]),
                )
                for title, tags in cards.items()
            ],
        )
        for name, cards in CARDS.items()
    ]
    content = layout_pb2.Layout(category=categories).SerializeToString()
    value = Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=SummaryMetadata(
            plugin_data=SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
        ),
        tensor=TensorProto(dtype=DT_STRING, string_val=[content]),
    )
    return Summary(value=[value])


def hyperparameters(settings: Mapping[str, Any], trial: str) -> Any:
    """The summary that begins the trial of that name in HParams; its metrics are the last ones."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    plain = {
        key: value if isinstance(value, bool | int | float | str) else _text(value)
        for key, value in settings.items()
    }
    return hparams_pb(plain, trial_id=trial)


def histogram(tag: str, values: np.ndarray[Any, Any]) -> Any:
    """The summary value of a histogram over all entries; they are finite."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    data = np.asarray(values, np.float64).ravel()
    counts, edges = np.histogram(data, BINS)
    return Summary.Value(
        tag=tag,
        histo=HistogramProto(
            min=data.min(),
            max=data.max(),
            num=len(data),
            sum=data.sum(),
            sum_squares=np.square(data).sum(),
            bucket_limit=[edges[0], *edges[1:]],
            bucket=[0, *counts],
        ),
    )


def described(tag: str) -> Any:
    """The metadata of a tag's first value, or None where there is nothing to say."""
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, SummaryMetadata

    if not (text := description(tag)):
        return None
    plugin = SummaryMetadata.PluginData(plugin_name="scalars")  # both readers want it
    return SummaryMetadata(
        plugin_data=plugin, data_class=DATA_CLASS_SCALAR, summary_description=text
    )


def description(tag: str) -> str:
    """What a tag means, in Markdown; "" for one that is not ours."""
    return DESCRIPTIONS.get(tag, REWARD_PART if tag.startswith("rollout/reward_") else "")


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
