"""The numbers that the docstrings of the tasks claim, computed exactly; and their simulation."""

from __future__ import annotations

import functools
import itertools
import re
from typing import Any

import numpy as np
import pytest
from rlpg.envs import catch, replenishment, t_maze, unit_commitment
from rlpg.envs.vectorized import ArrayVectorEnv, SingleEnv

Array = np.ndarray[Any, Any]


def claims(env: type[SingleEnv]) -> list[float]:
    """The numbers under `## Known` in an environment's docstring that carry decimals."""
    known = (env.__doc__ or "").split("## Known")[1]
    return [float(number) for number in re.findall(r"-?\d+\.\d+", known)]


def simulate(envs: ArrayVectorEnv, policy: Any) -> tuple[float, float]:
    """Mean return of `policy(t, obs)` and its standard error, one episode per environment."""
    obs, _ = envs.reset(seed=0)
    returns = np.zeros(envs.num_envs)
    running = np.ones(envs.num_envs, dtype=bool)
    for t in itertools.count():
        obs, reward, terminated, _, _ = envs.step(policy(t, obs))
        returns += reward * running
        running &= ~terminated
        if not running.any():
            break
    return float(returns.mean()), float(returns.std() / np.sqrt(envs.num_envs))


class TestCatch:
    @staticmethod
    def value(move: Array) -> float:
        """Exact return of a paddle that moves by -1, 0, 1 with probabilities `move` [3]."""
        num_places = catch.SIZE - 2
        step = np.zeros((num_places, num_places))  # [from, to]
        for place, action in itertools.product(range(num_places), range(3)):
            step[place, min(max(place + action - 1, 0), num_places - 1)] += move[action]
        landing = np.full(catch.SIZE, 1 / catch.SIZE)  # [column] probability
        catches = np.array([landing[place : place + 3].sum() for place in range(num_places)])
        where = np.full(num_places, 1 / num_places)
        total = 0.0
        for _ in range(catch.NUM_BALLS):
            where = where @ np.linalg.matrix_power(step, catch.FALL)
            total += 2 * where @ catches - 1
        return float(total)

    def test_random_and_constant_returns(self) -> None:
        random = self.value(np.full(3, 1 / 3))
        constant = max(self.value(np.eye(3)[action]) for action in range(3))
        assert random == pytest.approx(-3.125, abs=1e-12)
        assert constant == pytest.approx(-3.125, abs=1e-12)
        assert claims(catch.Catch) == [-3.125]
        generator = np.random.default_rng(0)
        envs = catch.CatchVectorEnv(5_000)
        mean, error = simulate(envs, lambda t, obs: generator.integers(3, size=5_000))
        assert abs(mean - random) < 4 * error

    def test_the_largest_return_is_five(self) -> None:
        """A player that reads ball and paddle off the image catches every ball."""

        def play(t: int, obs: Array) -> Array:
            image = obs[..., 0]
            ball = (image == catch.BALL).any(axis=1).argmax(axis=1)
            paddle = 1 + (image[:, -1] == catch.PADDLE).argmax(axis=1)
            return 1 + np.sign(np.clip(ball, 1, catch.SIZE - 2) - paddle)

        mean, error = simulate(catch.CatchVectorEnv(500), play)
        assert (mean, error) == (5.0, 0.0)

    def test_an_image(self) -> None:
        envs = catch.CatchVectorEnv()
        envs.reset(seed=0)
        envs.state[:, 0] = [7, 14, 3, 0, 0, 0]
        for _ in range(2):
            envs.step(np.array([1]))
        obs = envs.step(np.array([2]))[0][0, :, :, 0]
        expected = np.zeros((16, 16), dtype=np.uint8)
        expected[15, 7:10] = catch.PADDLE
        expected[3, 14] = catch.BALL
        np.testing.assert_array_equal(obs, expected)
        for _ in range(12):
            obs, reward, *_ = envs.step(np.array([1]))
        assert reward == -1
        expected[3, 14] = 0
        expected[0, 3] = catch.BALL
        np.testing.assert_array_equal(obs[0, :, :, 0], expected)

    def test_renders_what_it_observes(self) -> None:
        env = catch.Catch(render_mode="rgb_array")
        obs, _ = env.reset(seed=1)
        image = env.render()
        assert image is not None
        assert image.shape == (256, 256, 3)
        np.testing.assert_array_equal(image[::16, ::16, 0], obs[:, :, 0])


class TestUnitCommitment:
    units = np.array(list(itertools.product((0, 1), repeat=4)))  # [16, 4]

    @functools.cached_property
    def tables(self) -> tuple[Array, Array, Array]:
        """Cost [24, 5 noise, 16 before, 16 now], noise transition [5, 5], first noise [5]."""
        noise = np.arange(unit_commitment.NUM_NOISE)
        demand = unit_commitment.PROFILE[:, None] + unit_commitment.NOISE_STEP * (noise - 2)
        cost = unit_commitment.hourly_cost(
            demand[:, :, None, None], self.units[:, None], np.broadcast_to(self.units, (16, 16, 4))
        )
        walk = np.zeros((5, 5))
        for level, step in itertools.product(range(5), (-1, 0, 1)):
            walk[level, min(max(level + step, 0), 4)] += 1 / 3
        return cost / 100, walk, np.full(5, 0.2)

    def value(self, choose: Any) -> tuple[float, list[Array]]:
        """Backward induction: `choose(q [5, 16, 16]) -> v [5, 16]`; also the greedy actions."""
        cost, walk, first = self.tables
        v = np.zeros((5, 16))  # [noise, before]
        greedy = []
        for hour in reversed(range(unit_commitment.HOURS)):
            q = -cost[hour] + (walk @ v)[:, None, :]  # what runs now is `before` of the next hour
            greedy.append(q.argmax(axis=-1))
            v = choose(q)
        return float(first @ v[:, 0]), greedy[::-1]

    def test_returns(self) -> None:
        best, greedy = self.value(lambda q: q.max(axis=-1))
        random, _ = self.value(lambda q: q.mean(axis=-1))
        constant = max(self.value(lambda q, a=a: q[..., a])[0] for a in range(16))
        assert claims(unit_commitment.UnitCommitment) == [
            round(value, 3) for value in (best, random, constant)
        ]

        def act_best(t: int, obs: Array) -> Array:
            demand = np.rint(obs[:, 0] * 100)
            noise = np.rint((demand - unit_commitment.PROFILE[t]) / 10).astype(int) + 2
            before = (obs[:, 3:] @ np.array([8, 4, 2, 1])).astype(int)
            return self.units[greedy[t][noise, before]]

        envs = unit_commitment.UnitCommitmentVectorEnv(5_000)
        mean, error = simulate(envs, act_best)
        assert abs(mean - best) < 4 * error
        generator = np.random.default_rng(0)
        mean, error = simulate(envs, lambda t, obs: generator.integers(2, size=(5_000, 4)))
        assert abs(mean - random) < 4 * error


class TestReplenishment:
    stocks = np.array(list(itertools.product(range(7), repeat=3)))  # [343, 3]
    orders = np.array(list(itertools.product(range(4), repeat=3)))  # [64, 3]

    @functools.cached_property
    def tables(self) -> tuple[Array, Array, Array]:
        """Expected profit [343, 64], the stock after the order [343, 64] and a day [343, 343]."""
        demands = np.array(list(itertools.product(range(3), repeat=3)))  # [27, 3]
        probability = replenishment.DEMAND[np.arange(3), demands].prod(axis=1)  # [27]
        available = replenishment.stock_in(self.stocks[:, None], self.orders)  # [343, 64, 3]
        profit = sum(
            p * replenishment.profit(available, self.orders, demand)
            for p, demand in zip(probability, demands, strict=True)
        )
        left = np.maximum(self.stocks[:, None] - demands, 0)  # [343, 27, 3]
        place = np.array([49, 7, 1])
        after = np.zeros((343, 343))
        np.add.at(after, (np.arange(343)[:, None], left @ place), probability)
        return np.asarray(profit), available @ place, after

    def value(self, choose: Any) -> tuple[float, list[Array]]:
        profit, available, after = self.tables
        v = np.zeros(343)
        greedy = []
        for _ in range(replenishment.DAYS):
            q = profit + (after @ v)[available]
            greedy.append(q.argmax(axis=1))
            v = choose(q)
        return float(v.mean()), greedy[::-1]

    def test_returns(self) -> None:
        best, greedy = self.value(lambda q: q.max(axis=1))
        random, _ = self.value(lambda q: q.mean(axis=1))
        constant = max(self.value(lambda q, a=a: q[:, a])[0] for a in range(64))
        assert claims(replenishment.Replenishment) == [
            round(value, 3) for value in (best, random, constant)
        ]

        def act_best(t: int, obs: Array) -> Array:
            stock = np.rint(obs[:, :3] * replenishment.MAX_STOCK).astype(int)
            return self.orders[greedy[t][stock @ np.array([49, 7, 1])]]

        envs = replenishment.ReplenishmentVectorEnv(5_000)
        mean, error = simulate(envs, act_best)
        assert abs(mean - best) < 4 * error
        generator = np.random.default_rng(0)
        mean, error = simulate(envs, lambda t, obs: generator.integers(4, size=(5_000, 3)))
        assert abs(mean - random) < 4 * error


class TestTMaze:
    @pytest.mark.parametrize("length", [1, 3, 10])
    def test_the_sign_is_worth_1_to_who_remembers_it(self, length: int) -> None:
        envs = t_maze.TMazeVectorEnv(200, length=length)
        sign: list[Array] = []

        def policy(t: int, obs: Array) -> Array:
            sign.append(obs[:, 0]) if t == 0 else None
            return np.where(obs[:, 1] == 1, (sign[0] + 3) / 2, 0).astype(np.int64)

        assert simulate(envs, policy) == (1.0, 0.0)

    def test_no_policy_without_memory_gets_more_than_half(self) -> None:
        """All there is to see but the sign: the corridor and the junction, three actions each."""
        means = []
        for at_sign, corridor, junction in itertools.product(range(3), repeat=3):
            envs = t_maze.TMazeVectorEnv(400, length=3)
            actions = np.array([corridor, junction])

            def policy(t: int, obs: Array, actions: Array = actions, first: int = at_sign) -> Array:
                seen = actions[obs[:, 1].astype(np.int64)]
                return np.where(obs[:, 0] != 0, first, seen)

            means.append(simulate(envs, policy)[0])
        assert max(means) == pytest.approx(0.5, abs=0.1)
        assert claims(t_maze.TMaze) == [0.5]

    def test_an_episode_ends_by_a_turn_or_in_twice_the_way(self) -> None:
        envs = t_maze.TMazeVectorEnv(1, length=4)
        envs.reset(seed=0)
        ends = [bool(envs.step(np.array([0]))[2][0]) for _ in range(10)]
        assert ends == [False] * 9 + [True]

    def test_a_corridor_without_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="length: expected 1 to 1000, got 0"):
            t_maze.TMaze(length=0)
