#!/usr/bin/env python
"""Policy search through a model: cart-pole swing-up, known simulator or one learned from episodes.

    studies/policy_search.py                      # both parts, two seeds: 10 minutes of one core
    studies/policy_search.py --quick              # one seed, far too few updates: one minute
    studies/policy_search.py --part simulator --seeds 0 1
    studies/policy_search.py --part learned --seeds 0

300 particles fall, swing and balance for 3 seconds; the policy climbs the gradient of what they
earn. The program is written once; "score", "pathwise" and "combine" differentiate it. Writes
policy_search.json and policy_search.png in docs/pictures after every run, and skips runs it finds
there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from rlpg.gradients.baselines import LeaveOneOut
from rlpg.gradients.experiment import seeded
from rlpg.gradients.tape import How, Tape

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
REPORT = PICTURES / "policy_search.json"

POLE, CART, LENGTH, FRICTION, GRAVITY = 0.5, 0.5, 0.5, 0.1, 9.82  # kg, kg, m, N/(m/s), m/s^2
FORCE, STEP, HORIZON, PARTICLES = 10.0, 0.1, 30, 300  # N, s, steps, lanes
FIRST_HORIZON = 4  # steps, when a search begins
COST_WIDTH = 0.5  # m; hanging costs 1 - exp(-2) = 0.86 per step
STATE = ("position", "angle from upright", "velocity", "angular velocity")
START = (0.0, torch.pi, 0.0, 0.0)
START_NOISE = 0.02  # standard deviation of every component
STATE_NOISE = (0.003, torch.pi / 600, 0.03, torch.pi / 60)  # standard deviation of one step
HOWS: tuple[How, ...] = ("score", "pathwise", "combine")


def swing(state: Tensor, force: Tensor) -> Tensor:
    """`[N, 4]` time derivative of the state: a uniform rod hinged to a cart on rails.

    Args:
        state: `[N, 4]` as in `STATE`.
        force: `[N]` newton on the cart.
    """
    _, angle, velocity, spin = state.unbind(1)
    sin, cos = angle.sin(), angle.cos()
    push = force - FRICTION * velocity + 0.5 * POLE * LENGTH * spin.square() * sin
    acceleration = (push - 0.75 * POLE * GRAVITY * sin * cos) / (
        CART + POLE - 0.75 * POLE * cos.square()
    )
    spin_up = 1.5 / LENGTH * (GRAVITY * sin - acceleration * cos)
    return torch.stack([velocity, spin, acceleration, spin_up], dim=1)


def simulate(state: Tensor, force: Tensor, substeps: int = 1) -> Tensor:
    """`[N, 4]` state after `STEP` seconds of constant force (Runge-Kutta of fourth order)."""
    h = STEP / substeps
    for _ in range(substeps):
        a = swing(state, force)
        b = swing(state + h / 2 * a, force)
        c = swing(state + h / 2 * b, force)
        d = swing(state + h * c, force)
        state = state + h / 6 * (a + 2 * b + 2 * c + d)
    return state


def tip_distance(state: Tensor) -> Tensor:
    """`[N]` metres from the pole's tip to where it should be: `LENGTH` above the origin."""
    sideways = state[:, 0] + LENGTH * state[:, 1].sin()
    below = LENGTH * (1 - state[:, 1].cos())
    return (sideways.square() + below.square()).sqrt()


def reward(state: Tensor) -> Tensor:
    """`[N]` minus the saturating cost `1 - exp(-distance^2 / (2 width^2))`."""
    sideways = state[:, 0] + LENGTH * state[:, 1].sin()
    below = LENGTH * (1 - state[:, 1].cos())
    return torch.exp(-(sideways.square() + below.square()) / (2 * COST_WIDTH**2)) - 1


def features(state: Tensor) -> Tensor:
    """`[N, 5]` state with the angle as sine and cosine, each about one in size."""
    position, angle, velocity, spin = state.unbind(1)
    return torch.stack([position, angle.sin(), angle.cos(), velocity / 2, spin / 5], dim=1)


class Controller(nn.Module):
    """`[N, 4]` state -> `[N]` force: radial basis functions, squashed to +-`FORCE`.

    Deterministic: all that is random, and all that is differentiated, is the model's next state.
    """

    def __init__(self, generator: torch.Generator, num_centers: int = 50) -> None:
        super().__init__()
        spread = torch.tensor([0.5, 0.7, 0.7, 1.0, 1.0])
        self.centers = nn.Parameter(torch.randn(num_centers, 5, generator=generator) * spread)
        self.weights = nn.Parameter(torch.randn(num_centers, generator=generator) * 0.1)
        self.log_width = nn.Parameter(torch.zeros(5))
        self.linear = nn.Parameter(torch.zeros(5))

    def forward(self, state: Tensor) -> Tensor:
        x, c = features(state) / self.log_width.exp(), self.centers / self.log_width.exp()
        half = x @ c.T - 0.5 * (x.square().sum(1, keepdim=True) + c.square().sum(1))  # [N, C]
        return FORCE * torch.tanh(half.exp() @ self.weights + features(state) @ self.linear)


Model = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # state, force -> mean, deviation


class Simulator:
    """The true dynamics: mean and standard deviation of the next state, both `[N, 4]`."""

    def __call__(self, state: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.tensor(STATE_NOISE).expand_as(state)
        return simulate(state, force), noise


class Ensemble(nn.Module):
    """The learned dynamics: `members` networks, each with a mean and a deviation of the change.

    Particle i of N belongs to member i // (N / members) for its whole life, so that what the
    members disagree on stays a disagreement between whole trajectories.
    Source: Chua et al. 2018 (probabilistic ensembles, trajectory sampling TS-infinity).
    """

    def __init__(self, generator: torch.Generator, members: int = 5, hidden: int = 64) -> None:
        super().__init__()
        self.members = members
        sizes = [(6, hidden), (hidden, hidden), (hidden, 8)]
        self.weight = nn.ParameterList(
            torch.randn(members, i, o, generator=generator) / i**0.5 for i, o in sizes
        )
        self.bias = nn.ParameterList(torch.zeros(members, 1, o) for _, o in sizes)
        self.input_mean, self.input_scale = torch.zeros(6), torch.ones(6)
        self.change_mean, self.change_scale = torch.zeros(4), torch.ones(4)

    def _change(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation `[members, B, 4]` of the scaled change."""
        x = inputs
        for k, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = nn.functional.silu(x) if k < 2 else x
        mean, raw = x.chunk(2, dim=2)
        return mean, 3 * torch.tanh(raw / 3) - 2

    def forward(self, state: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([features(state), force[:, None] / FORCE], dim=1)
        inputs = (inputs - self.input_mean) / self.input_scale
        mean, log_deviation = self._change(inputs.reshape(self.members, -1, 6))
        mean = mean.reshape(-1, 4) * self.change_scale + self.change_mean
        return state + mean, log_deviation.reshape(-1, 4).exp() * self.change_scale

    def fit(self, state: Tensor, force: Tensor, after: Tensor, updates: int) -> float:
        """Maximize the likelihood of transitions `[B, 4]`, `[B]`, `[B, 4]`; the last loss."""
        inputs = torch.cat([features(state), force[:, None] / FORCE], dim=1)
        change = after - state
        self.input_mean, self.input_scale = inputs.mean(0), inputs.std(0) + 1e-3
        self.change_mean, self.change_scale = change.mean(0), change.std(0) + 1e-3
        inputs = ((inputs - self.input_mean) / self.input_scale).expand(self.members, -1, -1)
        target = (change - self.change_mean) / self.change_scale
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        for _ in range(updates):
            mean, log_deviation = self._change(inputs)
            error = (target - mean) * (-log_deviation).exp()
            loss = (0.5 * error.square() + log_deviation).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return float(loss.detach())


def start(num_lanes: int) -> Tensor:
    """`[N, 4]` the pole hanging at rest."""
    return Normal(torch.tensor(START), START_NOISE).sample((num_lanes,))


def start_of_search(num_lanes: int) -> Tensor:
    """`[N, 4]` a third hangs at rest, a third is about the top, a third anywhere and moving.

    From below alone, whirling through the top again and again is a local optimum that no estimator
    left; who has learned to balance gains by arriving slowly.
    """
    state = torch.randn(num_lanes, 4) * torch.tensor([0.4, 0.0, 0.7, 3.0])
    state[:, 1] = torch.pi * (2 * torch.rand(num_lanes) - 1)
    state[::3] = start(len(state[::3]))
    state[1::3] = torch.randn(state[1::3].shape) * torch.tensor([0.3, 0.3, 0.5, 1.0])
    return state


def rollout(tape: Tape, num_lanes: int, model: Model, controller: Controller, horizon: int) -> None:
    """The objective: what `num_lanes` particles earn per step."""
    state = start_of_search(num_lanes)
    for _ in range(horizon):
        mean, deviation = model(state, controller(state))
        state = tape.sample(Normal(mean, deviation, validate_args=False))
        tape.add(reward(state) / horizon)


def improve(
    controller: Controller, model: Model, how: How, updates: int, seed: int
) -> list[list[float]]:
    """Climb the gradient. The horizon grows to `HORIZON` over 60 % of the updates: what can be
    earned soon is learned soon, before the path through it has become chaotic.

    Returns `[update, mean return on the true system]` every 20 updates, for the record only.
    """
    optimizer = torch.optim.Adam(controller.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, updates)
    curve = []
    with seeded(seed, dict(controller.named_parameters())):
        for update in range(updates):
            if update % 20 == 0:
                curve.append([float(update), evaluate(controller, 200, 7)["return"]])
            share = min(1.0, update / (0.6 * updates))
            horizon = FIRST_HORIZON + int((HORIZON - FIRST_HORIZON) * share)
            tape = Tape(how, baseline=LeaveOneOut() if how != "pathwise" else None)
            rollout(tape, PARTICLES, model, controller, horizon)
            surrogate = tape.surrogate()
            optimizer.zero_grad()
            (-surrogate).backward()
            nn.utils.clip_grad_norm_(controller.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return curve


@torch.no_grad()
def evaluate(
    controller: Controller, episodes: int, seed: int, model: Model | None = None
) -> dict[str, float]:
    """Mean return from hanging, on the true system unless a model is given, and the fraction of
    episodes that end balanced: the tip within 0.25 m (half a pole) of its place throughout the last
    second."""
    model = model or Simulator()
    total, balanced = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool)
    with seeded(seed, {}):
        state = start(episodes)
        for t in range(HORIZON):
            state = torch.normal(*model(state, controller(state)))
            total += reward(state)
            if t >= HORIZON - 10:
                balanced &= tip_distance(state) < 0.25
    return {"return": float(total.mean()), "balanced": float(balanced.float().mean())}


@torch.no_grad()
def play(controller: Controller | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """One real episode: states `[T, 4]`, forces `[T]`, next states; no controller: at random."""
    model, rows = Simulator(), []
    with seeded(seed, {}):
        state = start(1)
        for _ in range(HORIZON):
            force = controller(state) if controller else FORCE * (2 * torch.rand(1) - 1)
            after = torch.normal(*model(state, force))
            rows.append((state[0], force[0], after[0]))
            state = after
    states, forces, nexts = zip(*rows, strict=True)
    return torch.stack(states), torch.stack(forces), torch.stack(nexts)


def known(how: How, seed: int, updates: int) -> dict[str, Any]:
    """Policy search in the simulator itself."""
    controller, begin = Controller(torch.Generator().manual_seed(seed)), time.process_time()
    curve = improve(controller, Simulator(), how, updates, 1000 + seed)
    seconds = (time.process_time() - begin) / updates
    result = evaluate(controller, 1000, 7)
    curve.append([float(updates), result["return"]])
    return {"curve": _rounded(curve), "cpu_seconds_per_update": round(seconds, 3), **result}


def learned(how: How, seed: int, episodes: int, updates: int, fits: int) -> dict[str, Any]:
    """One random episode, then again and again: fit the model to all there is, search a new policy
    in it, play one more episode.

    `rows` has per episode what the model promised, what the episode earned, and, unseen by the
    search, the true mean return and share of balanced episodes. The policy that earned most in its
    own episode is kept.
    """
    generator = torch.Generator().manual_seed(seed)
    begin = time.process_time()
    data = [play(None, 5000 + 100 * seed)]
    rows: list[dict[str, float]] = []
    for episode in range(1, episodes):
        state, force, after = (torch.cat(part) for part in zip(*data, strict=True))
        model = Ensemble(generator)
        model.fit(state, force, after, fits)
        model.requires_grad_(False)
        controller = Controller(generator)  # anew: what was learned in a worse model holds it back
        improve(controller, model, how, updates, 100 * seed + episode)
        promised = evaluate(controller, 500, 7, model)["return"]
        data.append(play(controller, 5000 + 100 * seed + episode))
        earned = float(reward(data[-1][2]).sum())
        rows.append({"promised": promised, "earned": earned, **evaluate(controller, 500, 7)})
        print("  " + ", ".join(f"{k} {v:.2f}" for k, v in rows[-1].items()), flush=True)
    rows = [{k: round(v, 3) for k, v in row.items()} for row in rows]
    kept = max(rows, key=lambda row: row["earned"])  # all that experience can tell
    return {"rows": rows, "kept": kept, "cpu_seconds": round(time.process_time() - begin)}


def _rounded(curve: list[list[float]]) -> list[list[float]]:
    return [[round(value, 3) for value in point] for point in curve]


def draw(report: dict[str, dict[str, Any]]) -> None:
    from matplotlib.figure import Figure
    from study import COLORS

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for key, run in report.items():
        part, how, _ = key.split("/")
        first = not any(k.startswith(f"{part}/{how}/") and k < key for k in report)
        label, color = how if first else None, COLORS[how]
        if part == "simulator":
            left.plot(*zip(*run["curve"], strict=True), color=color, lw=1.2, label=label)
        else:
            played = range(2, 2 + len(run["rows"]))
            true = [row["return"] for row in run["rows"]]
            right.plot(played, true, color=color, marker="o", ms=4, label=label)
            promised = [row["promised"] for row in run["rows"]]
            right.plot(played, promised, color=color, lw=0.7, ls=":")
    left.set(xlabel="update", ylabel="return from hanging", title="known simulator")
    right.set(xlabel="episodes played", title="learned model; dotted: what it promises")
    for axis, place in ((left, "center right"), (right, "lower right")):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8, loc=place)
    figure.savefig(PICTURES / "policy_search.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("simulator", "learned"), nargs="+")
    parser.add_argument("--how", choices=HOWS, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--quick", action="store_true", help="fewer updates, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {}
    if REPORT.exists() and not options.quick:
        report = json.loads(REPORT.read_text(encoding="utf-8"))
    for part in options.part or ("simulator", "learned"):
        for seed in [0] if options.quick else options.seeds:
            for how in options.how or (HOWS if part == "simulator" else HOWS[1:]):
                key = f"{part}/{how}/{seed}"
                if key in report:
                    continue
                print(key, flush=True)
                if part == "simulator":
                    run = known(how, seed, 100 if options.quick else 300)
                    print(f"  return {run['return']:.2f}, balanced {run['balanced']:.1%}")
                elif options.quick:
                    run = learned(how, seed, 4, 30, 200)
                else:
                    run = learned(how, seed, 12, 150, 500)
                report[key] = run
                if not options.quick:
                    PICTURES.mkdir(parents=True, exist_ok=True)
                    REPORT.write_text(json.dumps(report) + "\n", encoding="utf-8")
                    draw(report)


if __name__ == "__main__":
    main()
