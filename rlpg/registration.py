"""Our environments' ids, as strings: nothing is imported before it is made."""

from __future__ import annotations

from typing import Any

import gymnasium

# Gymnasium's id -> our vector version of it: the same bits, stepped as arrays, with `SAME_STEP`
# autoreset and a `state_dict`. Its constructor takes num_envs, max_episode_steps, and the
# environment's own arguments, but no render_mode.
NATIVE_VERSIONS = {
    "Acrobot-v1": "rlpg.envs.acrobot:AcrobotVectorEnv",
    "CartPole-v1": "rlpg.envs.cartpole:CartPoleVectorEnv",
    "MountainCar-v0": "rlpg.envs.mountain_car:MountainCarVectorEnv",
    "MountainCarContinuous-v0": "rlpg.envs.mountain_car:MountainCarContinuousVectorEnv",
    "Pendulum-v1": "rlpg.envs.pendulum:PendulumVectorEnv",
}

# id -> module:class of the single environment (its vector version is classVectorEnv), and its
# time limit. Where the class terminates by itself the limit is one step more than it ever takes: it
# says that episodes are finite, and never cuts one.
_OWN = {
    "rlpg/Bandit-v0": ("rlpg.envs.bandit:Bandit", 1 + 1),
    "rlpg/Catch-v0": ("rlpg.envs.catch:Catch", 75 + 1),
    "rlpg/Chain-v0": ("rlpg.envs.chain:Chain", 4 + 1),
    "rlpg/Hedging-v0": ("rlpg.envs.hedging:Hedging", 30 + 1),
    "rlpg/LQR-v0": ("rlpg.envs.lqr:LQR", 5 + 1),
    "rlpg/Replenishment-v0": ("rlpg.envs.replenishment:Replenishment", 30 + 1),
    "rlpg/SwingUp-v0": ("rlpg.envs.swing_up:SwingUp", 50),
    "rlpg/TMaze-v0": ("rlpg.envs.t_maze:TMaze", 2 * (1000 + 1) + 1),  # of its longest corridor
    "rlpg/UnitCommitment-v0": ("rlpg.envs.unit_commitment:UnitCommitment", 24 + 1),
}

# Name -> number of steps: differentiable environments on torch tensors, as `rlpg/TorchNAME`. The
# name says which to one class for all of them.
_TORCH = {
    "Acrobot-v1": 500,
    "CartPole-v1": 500,
    "CartPoleContinuous-v0": 500,
    "MountainCar-v0": 200,
    "MountainCarContinuous-v0": 999,
    "Pendulum-v1": 200,
}


def register_environments() -> None:
    """Make `gymnasium.make("rlpg:rlpg/Chain-v0")` and its like work; twice does no harm."""

    def register(env_id: str, entry: Any, vector_entry: str, num_steps: int, **more: Any) -> None:
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id, entry, vector_entry_point=vector_entry, max_episode_steps=num_steps, **more
            )

    for env_id, (entry, num_steps) in _OWN.items():
        register(env_id, entry, f"{entry}VectorEnv", num_steps)
    for name, num_steps in _TORCH.items():
        entry = "rlpg.envs.batched_classic:TorchClassic"
        register(f"rlpg/Torch{name}", entry, f"{entry}VectorEnv", num_steps, kwargs={"name": name})
    for theirs, ours in NATIVE_VERSIONS.items():
        spec: Any = gymnasium.spec(theirs)
        if not str(spec.entry_point).startswith("gymnasium.envs.classic_control."):
            continue  # someone has put another environment in its place
        register(f"rlpg/{theirs}", spec.entry_point, ours, spec.max_episode_steps,
                 reward_threshold=spec.reward_threshold)  # fmt: skip
