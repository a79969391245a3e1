"""rlpg: policy-gradient agents, tested gradients, and runs that resume to the same bits."""

from __future__ import annotations

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpg import errors
    from rlpg.checks.checking import check_env
    from rlpg.checks.report import Finding, Report
    from rlpg.engine.evaluator import Evaluation
    from rlpg.engine.loading import load
    from rlpg.errors import RlpgError
    from rlpg.gradients import estimators
    from rlpg.gradients.baselines import (
        Baseline,
        LeaveOneOut,
        MovingAverage,
        NoBaseline,
        OptimalConstant,
        PerTimeStep,
        Value,
    )
    from rlpg.gradients.compare import compare
    from rlpg.gradients.gradcheck import gradcheck
    from rlpg.gradients.tape import Tape
    from rlpg.learners import PPO, Batch, Learner, NaturalGradient, Pathwise, Reinforce
    from rlpg.learners.settings import LearnerSettings
    from rlpg.policies import Policy, StandardPolicy, make_head
    from rlpg.rollouts import Collector, Rollout, TensorCollector, make_envs
    from rlpg.runs.logger import JSONLLogger, Logger, TensorBoardLogger
    from rlpg.runs.recipe import Recipe
    from rlpg.verbs.evaluation import evaluate
    from rlpg.verbs.several import train_seeds
    from rlpg.verbs.training import Run, resume, train

__version__ = "0.2.0"
__all__ = [
    "PPO", "Baseline", "Batch", "Collector", "Evaluation", "Finding", "JSONLLogger", "Learner",
    "LearnerSettings", "LeaveOneOut", "Logger", "MovingAverage", "NaturalGradient", "NoBaseline",
    "OptimalConstant", "Pathwise", "PerTimeStep", "Policy", "Recipe", "Reinforce", "Report",
    "RlpgError", "Rollout", "Run", "StandardPolicy", "Tape", "TensorBoardLogger",
    "TensorCollector", "Value", "check_env", "compare", "errors", "estimators", "evaluate",
    "gradcheck", "load", "make_envs", "make_head", "resume", "train", "train_seeds",
]  # fmt: skip


def _is_command() -> bool:
    """Whether this process is the program `rlpg`, or `python -m rlpg`."""
    if sys.argv[:1] == ["-m"]:  # so it is while the package that -m names is imported
        return sys.orig_argv[-len(sys.argv)] == "rlpg"
    return bool(sys.argv) and PurePath(sys.argv[0]).stem == "rlpg"


# In the program, `rlpg.rollouts` does this: `--help` needs no Gymnasium, and while Gymnasium is
# imported the program already answers Ctrl-C.
if not _is_command():
    from rlpg.registration import register_environments

    register_environments()

_HOMES = {
    "rlpg.checks.checking": ("check_env",),
    "rlpg.checks.report": ("Finding", "Report"),
    "rlpg.engine.evaluator": ("Evaluation",),
    "rlpg.engine.loading": ("load",),
    "rlpg.errors": ("RlpgError",),
    "rlpg.gradients.baselines": (
        "Baseline", "LeaveOneOut", "MovingAverage", "NoBaseline", "OptimalConstant",
        "PerTimeStep", "Value",
    ),
    "rlpg.gradients.compare": ("compare",),
    "rlpg.gradients.gradcheck": ("gradcheck",),
    "rlpg.gradients.tape": ("Tape",),
    "rlpg.learners": ("Batch", "Learner", "NaturalGradient", "PPO", "Pathwise", "Reinforce"),
    "rlpg.learners.settings": ("LearnerSettings",),
    "rlpg.policies": ("Policy", "StandardPolicy", "make_head"),
    "rlpg.rollouts": ("Collector", "Rollout", "TensorCollector", "make_envs"),
    "rlpg.runs.logger": ("JSONLLogger", "Logger", "TensorBoardLogger"),
    "rlpg.runs.recipe": ("Recipe",),
    "rlpg.verbs.evaluation": ("evaluate",),
    "rlpg.verbs.several": ("train_seeds",),
    "rlpg.verbs.training": ("Run", "resume", "train"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are looked up when used: `rlpg --help` and `gymnasium.make` need no torch."""
    modules = {"estimators": "rlpg.gradients.estimators", "errors": "rlpg.errors"}
    if name in modules:  # a module itself, which nobody may have imported yet
        return importlib.import_module(modules[name])
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'rlpg' has no attribute {name!r}")
