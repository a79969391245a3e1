"""Checks by others: Gymnasium's own checker, and rlpg's collector on copies side by side."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import SyncVectorEnv, VectorEnv

from rlpg.checks.play import AnyEnv
from rlpg.checks.report import Finding, Status
from rlpg.checks.subject import Subject
from rlpg.errors import EnvironmentSetupError, counted, words
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, autoreset_mode, make_envs, probe_action_mask

_COPIES = 2
_STEPS = 64  # at once; until an episode has ended, but not for ever
_MOST_CHUNKS = 16

# Gymnasium's words that are no matter here: observations are normalized, actions are scaled, and
# pictures and limits are looked at elsewhere.
_STYLE = (
    r"infinity\. This is probably too|symmetric and normalized|render"
    r"|different from the unwrapped version"
    r"|default seed argument in `Env\.reset`"  # said twice
)
# Its words where it stops, about what no one here needs: infos are looked at and not kept; it looks
# for the word kwargs, and `reset` has tried the call itself.
_HARMLESS_STOPS = r"infos returned|does not provide"
# It takes every flag but Python's own False for a truncation, a NumPy one, too; ends are looked at
# elsewhere.
_WRONG_STOPS = r"truncates after 1 step"


def check_by_gymnasium(env: AnyEnv, *, seed: int, has_mask: bool) -> list[Finding]:
    """What Gymnasium's checker says.

    Args:
        env: without Gymnasium's own wrappers; left open.
        seed: of its random actions.
        has_mask: it acts without regard to a mask; what is raised is not the environment's fault.
    """
    name, stopped = "gymnasium", ""
    try:
        env.action_space.seed(seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gymnasium_check(env, skip_render_check=True, skip_close_check=True)
    except (Exception, SystemExit) as error:
        stopped = f"{words(error):.300}"
        if isinstance(error, AssertionError):
            stopped = " ".join(str(error).split()) or "an assertion without words"
        if has_mask:
            text = f"its checker acts without regard to the action mask and stopped: {stopped}"
            return [Finding(name, "skipped", text)]
    said = [re.sub(r"\x1b\[\d+m", "", str(w.message)).removeprefix("WARN: ") for w in caught]
    texts = [" ".join(text.split()) for text in dict.fromkeys(said) if not re.search(_STYLE, text)]
    found = [Finding(name, "warning", text) for text in texts]
    if re.search(_WRONG_STOPS, stopped):
        text = "its checker stopped at a first step that is cut off, or whose flag is NumPy's"
        found.append(Finding(name, "skipped", text))
    elif stopped:
        status: Status = "warning" if re.search(_HARMLESS_STOPS, stopped) else "fault"
        found.append(Finding(name, status, stopped))
    return found or [Finding(name, "ok", "its checker has no objection")]


def check_vectors(subject: Subject, *, seed: int, episode_cap: int) -> Finding:
    """Whether rlpg collects from copies: by the environment's vector version if it has one, and
    one after the other. Of an environment object there is one backend."""
    name, texts = "copies", []
    has_vector = subject.spec is not None and subject.spec.vector_entry_point is not None
    for backend in ("auto", "sync") if subject.is_ours else ("auto",):
        try:
            made = make_envs(
                subject.given, _COPIES,
                seed=seed, kwargs=subject.kwargs, backend=backend, episode_cap=episode_cap,
            )  # fmt: skip
        except EnvironmentSetupError as error:
            return Finding(name, "fault", str(error))
        try:
            is_sync = isinstance(made.envs.unwrapped, SyncVectorEnv)
            texts.append(_collected(made.envs, seed, "one by one" if is_sync else "vector version"))
        except (Exception, SystemExit) as error:
            return Finding(name, "fault", f"{made.description}: {words(error)}")
        finally:
            made.envs.close()
        if is_sync:
            if has_vector and backend == "auto" and subject.is_ours:
                texts.append("its vector version does not take all arguments and is not used")
            break
    return Finding(name, "ok", "; ".join(texts))


def _collected(envs: VectorEnv[Any, Any, Any], seed: int, how: str) -> str:
    policy = StandardPolicy(
        envs.single_observation_space,
        envs.single_action_space,
        hidden=(8,),
        info_mask=probe_action_mask(envs),
        generator=torch.Generator().manual_seed(seed),
    )
    # Observations out of bounds have a finding of their own.
    collector = Collector(envs, policy, np.random.SeedSequence(seed), warn=lambda _: None)
    ended = 0
    for _ in range(_MOST_CHUNKS):
        ended += len(collector.steps(_STEPS).episodes.returns)
        if ended:
            break
    steps = counted(collector.env_steps, "step")
    mode = autoreset_mode(envs).name
    return f"{how}: {steps} of {envs.num_envs} copies, {counted(ended, 'end')}, {mode} autoreset"
