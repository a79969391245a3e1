"""What TensorBoard needs to explain a run: the layout of its cards, the settings as
hyperparameters, a description of each tag, histograms. All as TensorBoard's protocol buffers; the
words are in `dashboard.toml`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import numpy as np

from rlpg.settings import as_text

BINS: Final = 30  # of a histogram

_TABLES: Final = tomllib.loads(
    resources.files(__package__).joinpath("dashboard.toml").read_text("utf-8")
)
CARDS: Final[Mapping[str, Mapping[str, list[str]]]] = _TABLES["cards"]  # by category and title
DESCRIPTIONS: Final[Mapping[str, str]] = _TABLES["descriptions"]  # by tag


def layout() -> Any:
    """The summary that arranges the cards of the tab Custom Scalars."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.util.tensor_util import make_tensor_proto

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
        metadata=metadata.create_summary_metadata(),
        tensor=make_tensor_proto(content, dtype=np.object_),
    )
    return Summary(value=[value])


def hyperparameters(settings: Mapping[str, Any], trial: str) -> Any:
    """The summary that begins the trial of that name in HParams; its metrics are the last ones."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    plain = {
        key: value if isinstance(value, bool | int | float | str) else as_text(value)
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
    of_reward = "Mean per step of this entry of the environment's `info`."
    return DESCRIPTIONS.get(tag, of_reward if tag.startswith("rollout/reward_") else "")
