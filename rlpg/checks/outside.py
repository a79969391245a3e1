"""Checks by others: Gymnasium's own checker, and rlpg's collector on copies side by side."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import SyncVectorEnv, VectorEnv

from rlpg.checks.play import AnyEnv
from rlpg.checks.report import Finding, Status, counted, words
from rlpg.errors import EnvironmentSetupError, RlpgError
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, MadeEnvs, autoreset_mode, probe_action_mask

_COPIES = 2
_STEPS = 64  # at once; until an episode has ended, but not for ever
_MOST_CHUNKS = 16

# Gymnasium's words that are no matter here: observations are normalized, actions are scaled, and
# pictures, limits and closing are looked at elsewhere.
_STYLE = (
    r"infinity\. This is probably too",
    r"symmetric and normalized",
    r"different from the unwrapped version",
    r"default seed argument in `Env\.reset`",  # said twice
    r"render",
)
# Its words about what no program could use, and about seeding.
_FAULTS = (
    r"was expecting",
    r"should be an int",
    r"not within the observation space",
    r"greater than a high",
    r"to be a boolean",
    r"[Rr]eward",
    r"tuple of the form",
    r"\(obs, info\)",
    r"seed",
    r"old step API",
    r"`options`",
)
# Its words where it stops, about what no one here needs.
_HARMLESS_STOPS = (
    r"infos returned",  # they are looked at and not kept: it costs nothing if all are one object
    r"does not provide",  # it looks for the word kwargs; `reset` has tried the call itself
)
# Its words -> the checks here that find the same.
_SAME = {
    r"observation space|was expecting|should be|must be a dict|keys|length is not|Casting input": (
        "observations",
        "numbers",
        "spaces",
    ),
    r"observations returned .* share": ("buffers",),
    r"determini|not equivalent|np_random|random number generator|random gen|although similar": (
        "replay",
        "seeds",
        "global random",
        "early reset",
        "actions",
    ),
    r"reward": ("rewards", "numbers", "replay"),
    r"terminat|truncat|done": ("ends",),
    r"info|dictionary": ("info",),
    r"tuple|reset|step|seed|options|element": ("reset", "step"),
}


def check_by_gymnasium(
    env: AnyEnv, found: Collection[Finding], *, seed: int, has_mask: bool
) -> list[Finding]:
    """What Gymnasium's checker says, but for what other checks have said already.

    Args:
        env: without Gymnasium's own wrappers; left open.
        found: the findings of the other checks.
        seed: of its random actions.
        has_mask: it acts without regard to a mask; what is raised is not the environment's fault.
    """
    name, stopped, same = "gymnasium", "", set[str]()
    try:
        env.action_space.seed(seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gymnasium_check(env, skip_render_check=True, skip_close_check=True)
    except AssertionError as error:
        stopped = " ".join(str(error).split()) or "an assertion without words"
        same = _same_checks(stopped)
    except (Exception, SystemExit) as error:
        stopped = words(error)
        same = {"reset", "step", "after the end", *_same_checks(stopped)}
        if has_mask:
            text = f"its checker acts without regard to the action mask and stopped: {stopped}"
            return [Finding(name, "skipped", text)]
    known = {finding.check for finding in found if finding.status in ("fault", "warning")}
    findings: list[Finding] = []
    said = dict.fromkeys(_plain(str(w.message)) for w in caught)
    for text in said:
        if _matches(_STYLE, text) or known.intersection(_same_checks(text)):
            continue
        status: Status = "fault" if _matches(_FAULTS, text) else "warning"
        findings.append(Finding(name, status, text))
    if known & same:
        text = f"its checker stops at what `{min(known & same)}` found; correct that and run again"
        return [*findings, Finding(name, "skipped", text)]
    if stopped:
        status = "warning" if _matches(_HARMLESS_STOPS, stopped) else "fault"
        return [*findings, Finding(name, status, stopped)]
    return findings or [Finding(name, "ok", "its checker has no objection")]


def _plain(text: str) -> str:
    """Without colors and the word WARN."""
    return " ".join(re.sub(r"\x1b\[\d+m", "", text).removeprefix("WARN: ").split())


def _matches(patterns: Collection[str], text: str) -> bool:
    return any(re.search(pattern, text) for pattern in patterns)


def _same_checks(text: str) -> set[str]:
    return {
        check for words_, checks in _SAME.items() if re.search(words_, text) for check in checks
    }


# -------------------------------------------------------------------------- copies side by side


def check_vectors(
    make: Callable[[int, str], MadeEnvs], *, seed: int, has_vector: bool, is_ours: bool
) -> Finding:
    """Whether rlpg collects from copies: by the environment's vector version if it has one, and
    one after the other.

    Args:
        make: the vector environment for a number of copies and a backend.
        seed: of the actions.
        has_vector: whether a vector version is registered.
        is_ours: False where an environment object was given: then there is one backend.
    """
    name, texts = "copies", []
    for backend in ("auto", "sync") if is_ours else ("auto",):
        try:
            made = make(_COPIES, backend)
        except EnvironmentSetupError as error:
            return Finding(name, "fault", str(error))
        try:
            is_sync = isinstance(made.envs.unwrapped, SyncVectorEnv)
            texts.append(_collected(made.envs, seed, "one by one" if is_sync else "vector version"))
        except (RlpgError, Exception, SystemExit) as error:
            what = str(error) if isinstance(error, RlpgError) else words(error)
            return Finding(name, "fault", f"{made.description}: {what}")
        finally:
            made.envs.close()
        if is_sync:
            if has_vector and backend == "auto" and is_ours:
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
