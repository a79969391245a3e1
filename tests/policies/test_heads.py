"""Every head: draws follow the law that forward states, and every action fits the space."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlpg.errors import SpaceError, UsageError
from rlpg.policies import Head, make_head
from rlpg.policies.actions import first

NUM_DRAWS = 20_000

TWO = spaces.Discrete(2, start=3)
NESTED = spaces.Dict(
    {
        "gear": spaces.Discrete(3, start=-1),
        "lamps": spaces.MultiBinary(2),
        "rest": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Discrete(2))),
    }
)
COUNTABLE: dict[str, tuple[spaces.Space, dict[str, Any]]] = {
    "discrete": (spaces.Discrete(5, start=-2), {}),
    "one action": (spaces.Discrete(1), {}),
    "small dtype": (spaces.Discrete(3, dtype=np.int8), {}),
    "bernoulli": (TWO, {"bernoulli": True}),
    "multi": (spaces.MultiDiscrete([2, 4, 3]), {}),
    "equal multi": (spaces.MultiDiscrete([3, 3], start=[1, -1]), {}),
    "2-d multi": (spaces.MultiDiscrete([[2, 3], [1, 2]], start=[[0, 1], [2, 3]]), {}),
    "bits": (spaces.MultiBinary(3), {}),
    "2-d bits": (spaces.MultiBinary([2, 2]), {}),
    "nested": (NESTED, {}),
}
UNEVEN = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), dtype=np.float64)
MEASURED: dict[str, tuple[spaces.Box, dict[str, Any]]] = {
    f"{kind} {name}": (space, options)
    for name, space in {"vector": spaces.Box(-2, 3, (2,)), "uneven": UNEVEN}.items()
    for kind, options in {
        "clipped": {},
        "dependent": {"std": "dependent", "log_std_init": -1.0},
        "squashed": {"gaussian": "squashed"},
        "squashed dependent": {"gaussian": "squashed", "std": "dependent"},
        "beta": {"gaussian": "beta"},
    }.items()
}
UNUSUAL_BOXES = {
    "scalar": spaces.Box(-1, 1, ()),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "half precision": spaces.Box(-0.1, 0.3, (2,), np.float16),
    "integers": spaces.Box(-3, 4, (2,), np.int32),
    "bytes": spaces.Box(0, 255, (2,), np.uint8),
    "bits": spaces.Box(0, 1, (2,), np.bool_),
    "wide": spaces.Box(-1e6, 1e6, (2,)),
    "point": spaces.Box(2.0, 2.0, (1,)),
}
UNBOUNDED_BOXES = {
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "half bounded": spaces.Box(np.array([0, -np.inf]), np.array([np.inf, 1]), dtype=np.float64),
    "partly bounded": spaces.Box(np.array([-1, -np.inf]), np.array([2, 1]), dtype=np.float64),
    "astronomical": spaces.Box(-3e38, 3e38, (1,)),
    "all integers": spaces.Box(-np.inf, np.inf, (2,), np.int64),
    "large integers": spaces.Box(2**62, 2**63 - 2, (2,), np.int64),
    "unsigned": spaces.Box(0, 2**64 - 1, (1,), np.uint64),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs_for(head: Head, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, head.num_outputs, generator=generator(seed))


def every_action(space: spaces.Space) -> list[Any]:
    """All members of a countable space, as `contains` wants them."""
    if isinstance(space, spaces.Discrete):
        return [space.dtype.type(space.start + i) for i in range(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        ranges = [range(s, s + n) for s, n in zip(space.start.flat, space.nvec.flat, strict=True)]
        return [np.array(c, space.dtype).reshape(space.shape) for c in itertools.product(*ranges)]
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        bits = itertools.product((0, 1), repeat=size)
        return [np.array(c, np.int8).reshape(space.shape) for c in bits]
    if isinstance(space, spaces.Tuple):
        return list(itertools.product(*(every_action(part) for part in space.spaces)))
    assert isinstance(space, spaces.Dict)
    parts = [every_action(part) for part in space.spaces.values()]
    return [dict(zip(space.spaces, c, strict=True)) for c in itertools.product(*parts)]


def stacked(space: spaces.Space, actions: list[Any]) -> Any:
    """A batch as a vector environment takes it."""
    if isinstance(space, spaces.Tuple):
        columns = zip(*actions, strict=True)
        return tuple(stacked(s, list(c)) for s, c in zip(space.spaces, columns, strict=True))
    if isinstance(space, spaces.Dict):
        return {k: stacked(s, [a[k] for a in actions]) for k, s in space.spaces.items()}
    return np.stack(actions)


def from_env(space: spaces.Space, batch: Any) -> Tensor:
    """The head's own actions `[B, *A]` of a batch for the environment, written out by hand."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        own = [from_env(part, batch[key]) for key, part in parts]
        return torch.cat([action.reshape(len(action), -1).float() for action in own], 1)
    if isinstance(space, spaces.MultiBinary):
        return torch.as_tensor(np.asarray(batch, np.float32))
    return torch.as_tensor(np.asarray(batch, np.int64) - space.start)


def row(space: spaces.Space, batch: Any, i: int) -> Any:
    if isinstance(space, spaces.Tuple):
        return tuple(row(s, b, i) for s, b in zip(space.spaces, batch, strict=True))
    if isinstance(space, spaces.Dict):
        return {k: row(s, batch[k], i) for k, s in space.spaces.items()}
    return batch[i] if isinstance(space, spaces.Discrete) else np.asarray(batch[i])


def test_only_choices_among_finitely_many_are_discrete() -> None:
    box, choice = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
    assert all(make_head(space, **options).is_discrete for space, options in COUNTABLE.values())
    assert not any(make_head(space, **options).is_discrete for space, options in MEASURED.values())
    assert not make_head(spaces.Tuple((choice, box))).is_discrete


@pytest.mark.parametrize("is_masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("name", COUNTABLE)
class TestCountableActions:
    def setup(self, name: str, is_masked: bool):
        space, options = COUNTABLE[name]
        head = make_head(space, **options)
        mask = torch.rand(head.num_mask, generator=generator(7)) < 0.6 if is_masked else None
        support = from_env(space, stacked(space, every_action(space)))  # [S, *A]
        return space, head, outputs_for(head)[0], mask, support

    def test_probabilities_of_all_actions_sum_to_one(self, name, is_masked):
        _, head, outputs, mask, support = self.setup(name, is_masked)
        probs = head(outputs, mask).log_prob(support).exp()
        assert probs.shape == (len(support),)
        assert probs.sum().item() == pytest.approx(1.0, abs=1e-6)

    def test_draws_follow_the_distribution(self, name, is_masked):
        from scipy import stats  # takes a second, which collecting tests does not need

        _, head, outputs, mask, support = self.setup(name, is_masked)
        probs = head(outputs, mask).log_prob(support).exp().double().numpy()
        rows = outputs.expand(NUM_DRAWS, -1)
        drawn = head.draw(rows, generator(1), mask)
        assert drawn.dtype == head.action_dtype
        assert drawn.shape == (NUM_DRAWS, *head.action_shape)
        flat = support.reshape(len(support), -1)
        is_equal = (drawn.reshape(NUM_DRAWS, 1, -1) == flat).all(-1)  # [draws, S]
        assert (is_equal.sum(-1) == 1).all()
        counts = is_equal.sum(0).numpy()
        assert (counts[probs == 0] == 0).all()
        possible = probs > 0
        if possible.sum() > 1:
            expected = probs[possible] / probs[possible].sum() * NUM_DRAWS
            assert stats.chisquare(counts[possible], expected).pvalue > 1e-4

    def test_sampling_the_distribution_gives_the_same_kind_of_action(self, name, is_masked):
        _, head, outputs, mask, _ = self.setup(name, is_masked)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sample = head(outputs, mask).sample((4,))
        assert sample.dtype == head.action_dtype
        assert sample.shape == (4, *head.action_shape)

    def test_mode_is_the_most_likely_action(self, name, is_masked):
        _, head, outputs, mask, support = self.setup(name, is_masked)
        dist = head(outputs, mask)
        mode = head.mode(outputs, mask)
        assert mode.dtype == head.action_dtype
        assert mode.shape == head.action_shape
        assert dist.log_prob(mode).item() == pytest.approx(dist.log_prob(support).max().item())

    def test_entropy_is_that_of_the_enumerated_law(self, name, is_masked):
        _, head, outputs, mask, support = self.setup(name, is_masked)
        outputs = outputs.clone().requires_grad_()
        dist = head(outputs, mask)
        log_prob = dist.log_prob(support)
        expected = -(log_prob.exp() * log_prob).sum().item()
        assert dist.entropy().item() == pytest.approx(expected, abs=1e-5)
        dist.entropy().backward()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()

    def test_actions_for_the_environment_are_in_the_space_and_come_back(self, name, is_masked):
        space, head, outputs, mask, support = self.setup(name, is_masked)
        drawn = head.draw(outputs.expand(50, -1), generator(2), mask)
        batch = head.to_env(drawn.numpy())
        assert all(space.contains(row(space, batch, i)) for i in range(50))
        assert space.contains(first(space, batch))
        assert torch.equal(from_env(space, batch), drawn)
        assert torch.equal(from_env(space, head.to_env(support.numpy())), support)


def test_a_mask_forbids_exactly_its_actions():
    head = make_head(spaces.Tuple((TWO, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2))))
    # Discrete: only the second; first choice: only the first; second choice: all; bits: the first.
    mask = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 0], dtype=torch.bool)
    assert head.num_mask == len(mask)
    drawn = head.draw(outputs_for(head).expand(500, -1), generator(), mask)
    possible = [sorted(set(column)) for column in drawn.T.tolist()]
    assert possible == [[1], [0], [0, 1, 2], [0, 1], [0]]


def test_a_masked_action_is_never_drawn_in_a_million_draws():
    head = make_head(spaces.Discrete(4))
    mask = torch.tensor([True, False, True, False])
    outputs = torch.tensor([0.0, 30.0, -3.0, 100.0]).expand(1_000_000, 4)
    drawn = head.draw(outputs, generator(), mask)
    assert set(drawn.unique().tolist()) == {0, 2}


@pytest.mark.parametrize("name", COUNTABLE)
def test_where_nothing_is_allowed_the_choice_is_defined(name):
    # A terminal observation shows such a mask; NEXT_STEP environments still ask for an action.
    space, options = COUNTABLE[name]
    head = make_head(space, **options)
    mask = torch.zeros(head.num_mask, dtype=torch.bool)
    outputs = outputs_for(head, 200).requires_grad_()
    dist = head(outputs, mask)
    drawn = head.draw(outputs, generator(), mask)
    assert dist.entropy().isfinite().all()
    dist.log_prob(drawn).sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    if name not in ("bits", "2-d bits", "nested"):  # every bit may be forbidden: then it is 0
        torch.testing.assert_close(dist.log_prob(drawn), head(outputs).log_prob(drawn))


def test_a_choice_of_which_nothing_is_allowed_gave_its_padding_away():
    """Beside one that allows its first category, which the padding of the other one points at."""
    head = make_head(spaces.MultiDiscrete([3, 2]))
    mask = torch.tensor([True, False, True, False, False])
    outputs = torch.tensor([1.0, 2.0, 3.0, 1.0, 0.0])
    dist = head(outputs.expand(1000, 5), mask)
    drawn = head.draw(outputs.expand(1000, 5), generator(), mask)
    assert drawn[:, 0].unique().tolist() == [0, 2]
    assert drawn[:, 1].unique().tolist() == [0, 1]
    expected = torch.cat([outputs[3:].softmax(-1), torch.zeros(1)])
    torch.testing.assert_close(dist.base_dist.probs[0, 1], expected)


@pytest.mark.parametrize("options", [{}, {"bernoulli": True}], ids=str)
def test_of_two_actions_the_forbidden_one_was_taken(options):
    head = make_head(spaces.Discrete(2), **options)
    masks = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    outputs = torch.tensor([0.3, -0.2])[: head.num_outputs]
    free = float(head(outputs).log_prob(torch.tensor(1)).exp())
    dist = head(outputs.expand(4, -1), masks)
    probs = dist.log_prob(torch.ones(4, dtype=torch.int64)).exp()
    torch.testing.assert_close(probs, torch.tensor([0.0, 1.0, free, free]))
    assert head.mode(outputs.expand(2, -1), masks[:2]).tolist() == [0, 1]


@pytest.mark.parametrize("options", [{}, {"bernoulli": True}], ids=str)
def test_actions_on_a_device_were_counted_from_zero(options):
    head = make_head(spaces.Discrete(2, start=5), **options)
    action = torch.tensor([0, 1, 1])
    assert head.to_env_on(torch.device("cpu"))(action).tolist() == [5, 6, 6]
    assert head.to_env(action.numpy()).tolist() == [5, 6, 6]


class TestContinuousActions:
    @pytest.mark.parametrize("name", MEASURED)
    def test_draws_follow_the_distribution(self, name):
        from scipy import stats  # takes a second, which collecting tests does not need

        space, options = MEASURED[name]
        head = make_head(space, **options)
        outputs = outputs_for(head)
        drawn = head.draw(outputs.expand(NUM_DRAWS, -1), generator(3)).double().numpy()
        base = head(outputs.detach()).base_dist
        for i in range(2):
            if options.get("gaussian") == "beta":
                parameters = base.concentration1, base.concentration0
                law = stats.beta(*(float(p[0, i]) for p in parameters))
            else:
                law = stats.norm(base.loc[0, i].item(), base.scale[0, i].item())
            assert stats.kstest(drawn[:, i], law.cdf).pvalue > 1e-4

    @pytest.mark.parametrize("name", MEASURED)
    def test_log_prob_is_a_density(self, name):
        # Riemann sum over the head's own units of exp(log_prob), times what one unit is worth.
        space, options = MEASURED[name]
        head = make_head(space, **options)
        dist = head(outputs_for(head).double().float())
        grid = np.linspace(0, 1, 4001)[1:-1] if options.get("gaussian") == "beta" else None
        if grid is None:
            grid = np.linspace(-12, 12, 4001)
        x = torch.from_numpy(grid).float()[:, None].expand(-1, 2)[:, None]  # [G, 1, 2]
        log_density = dist.base_dist.log_prob(x).detach().double()[:, 0]  # [G, 2]
        step = grid[1] - grid[0]
        if options.get("gaussian") == "squashed":  # the density is per unit of the env's action
            half_width = (space.high - space.low).astype(float) / 2
            slope = half_width / np.cosh(grid)[:, None] ** 2
        else:
            slope = np.ones((len(grid), 2))
        mass = (log_density.exp().numpy() * slope * step).sum(0)
        np.testing.assert_allclose(mass, 1.0, atol=2e-3)
        whole = dist.log_prob(x)[:, 0]
        np.testing.assert_allclose(whole.detach(), log_density.sum(-1), rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("name", MEASURED)
    def test_mode_is_inside_and_no_draw_is_likelier(self, name):
        space, options = MEASURED[name]
        head = make_head(space, **options)
        outputs = outputs_for(head, 3)
        mode = head.mode(outputs)
        batch = head.to_env(mode.numpy())
        if options.get("gaussian") is not None:
            assert (space.low < batch).all()
            assert (batch < space.high).all()
        if options.get("gaussian") != "squashed":  # there it is the median of the action
            dist = head(outputs)
            draws = torch.stack([head.draw(outputs, generator(i)) for i in range(50)])
            assert (dist.log_prob(draws) <= dist.log_prob(mode) + 1e-5).all()

    @pytest.mark.parametrize("gaussian", ["clipped", "squashed", "beta"])
    @pytest.mark.parametrize("name", [*UNUSUAL_BOXES, *UNBOUNDED_BOXES])
    def test_actions_for_the_environment_are_in_the_space(self, name, gaussian):
        space = {**UNUSUAL_BOXES, **UNBOUNDED_BOXES}[name]
        if gaussian != "clipped" and (name in UNBOUNDED_BOXES or name == "point"):
            with pytest.raises(SpaceError, match=r"action: expected finite bounds .*clipped"):
                make_head(space, gaussian=gaussian)
            return
        head = make_head(space, gaussian=gaussian)
        outputs = 5 * outputs_for(head, 200)
        dist, drawn = head(outputs), head.draw(outputs, generator())
        assert drawn.shape == (200, *space.shape)
        assert dist.log_prob(drawn).shape == (200,)
        assert dist.entropy().isfinite().all()
        for action in (drawn, head.mode(outputs)):
            batch = head.to_env(action.numpy())
            assert batch.dtype == space.dtype
            assert all(space.contains(np.asarray(a)) for a in batch)

    def test_the_initial_policy_is_centered_in_the_box(self):
        space = spaces.Box(np.array([10.0, -4.0]), np.array([20.0, 0.0]), dtype=np.float64)
        for gaussian in ("clipped", "squashed", "beta"):
            head = make_head(space, gaussian=gaussian)
            center = head.to_env(head.mode(torch.zeros(1, head.num_outputs)).numpy())
            np.testing.assert_allclose(center, [[15.0, -2.0]], rtol=1e-6)

    def test_integers_are_rounded_and_equally_likely_at_first(self):
        # Uniform numbers in head units: each of 5 integers, the outermost too, has a fifth.
        head = make_head(spaces.Box(-2, 2, (1,), np.int64))
        uniform = np.linspace(-1, 1, 5002)[1:-1, None].astype(np.float32)
        values, counts = np.unique(head.to_env(uniform), return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert counts.tolist() == [1000] * 5

    @pytest.mark.parametrize("name", MEASURED)
    def test_the_unit_interval_becomes_the_bounds(self, name):
        # low, center and high of the space, by the head's own units written down by hand.
        space, options = MEASURED[name]
        head = make_head(space, **options)
        share = np.array([[0.0, 0.0], [0.25, 0.75], [0.5, 0.5], [1.0, 1.0]])
        unit = share if options.get("gaussian") == "beta" else 2 * share - 1
        if options.get("gaussian") == "squashed":  # tanh(10) is 1 in float32
            unit = np.where(np.abs(unit) == 1, 10 * unit, np.arctanh(np.clip(unit, -0.9, 0.9)))
        batch = head.to_env(unit.astype(np.float32))
        expected = space.low + share * (space.high - space.low)
        np.testing.assert_allclose(batch, expected, rtol=1e-5, atol=1e-5)

    def test_squashed_log_prob_far_out_is_finite(self):
        # tanh(20) is 1 in float32: a log-prob that went through the action would be infinite.
        head = make_head(spaces.Box(-1, 1, (1,)), gaussian="squashed")
        u = torch.tensor([[20.0], [-20.0], [0.0]])
        assert head(torch.zeros(3, 1)).log_prob(u).isfinite().all()


class TestStandardDeviation:
    space = spaces.Box(-1, 1, (2,))

    @pytest.mark.parametrize("std", ["independent", "dependent"])
    @pytest.mark.parametrize("init", [-4.0, -1.0, 0.0, 1.5])
    def test_starts_where_it_is_told(self, std, init):
        head = make_head(self.space, std=std, log_std_init=init)
        scale = head(torch.zeros(1, head.num_outputs)).base_dist.scale
        np.testing.assert_allclose(scale.log().detach(), init, atol=1e-5)

    def test_cannot_collapse_and_can_come_back(self):
        head = make_head(self.space, log_std_floor=-3.0)
        with torch.no_grad():
            head.raw_log_std.fill_(-20.0)
        dist = head(torch.zeros(1, 2))
        assert (dist.base_dist.scale >= np.exp(-3.0)).all()
        dist.log_prob(torch.ones(1, 2)).sum().backward()  # a far action asks for a wider law
        assert (head.raw_log_std.grad > 0).all()

    def test_dependent_std_follows_the_outputs(self):
        head = make_head(self.space, std="dependent")
        outputs = torch.tensor([[0.0, 0.0, -1.0, 1.0]])
        narrow, wide = head(outputs).base_dist.scale[0]
        assert narrow < 1 < wide


class TestBeta:
    def test_concentrations_stay_above_one(self):
        head = make_head(spaces.Box(0, 1, (1,)), gaussian="beta")
        outputs = torch.tensor([[-200.0, -200.0], [-200.0, 50.0], [300.0, 300.0]])
        base = head(outputs).base_dist
        assert (base.concentration0 > 1).all()
        assert (base.concentration1 > 1).all()
        mode = head.mode(outputs)
        assert ((mode > 0) & (mode < 1)).all()

    def test_draws_never_touch_the_ends(self):
        head = make_head(spaces.Box(0, 1, (1,)), gaussian="beta")
        outputs = torch.tensor([[-30.0, 90.0]]).expand(100_000, 2)
        drawn = head.draw(outputs, generator())
        assert ((drawn > 0) & (drawn < 1)).all()
        assert head(outputs).log_prob(drawn).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"gaussian": "squashed"}, {"gaussian": "beta"}])
def test_draws_and_modes_carry_no_gradient(options):
    head = make_head(spaces.Box(-1, 1, (2,)), **options)
    outputs = outputs_for(head).requires_grad_()
    assert not head.draw(outputs, generator()).requires_grad
    assert not head.mode(outputs).requires_grad


def test_products_of_discrete_and_continuous_actions():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2, 2)), "b": spaces.Discrete(3, start=5)})
    for gaussian in ("clipped", "squashed", "beta"):
        head = make_head(space, gaussian=gaussian)
        outputs = outputs_for(head, 64)
        mask = torch.tensor([True, False, True])
        dist, drawn = head(outputs, mask), head.draw(outputs, generator(), mask)
        assert head.num_mask == 3
        assert drawn.shape == (64, 5)
        assert set(drawn[:, 4].tolist()) <= {0.0, 2.0}
        assert dist.log_prob(drawn).shape == (64,)
        assert dist.has_rsample is False
        batch = head.to_env(drawn.numpy())
        assert all(space.contains(row(space, batch, i)) for i in range(64))


class TestRefusals:
    @pytest.mark.parametrize(
        "space",
        [
            spaces.Text(3),
            spaces.Graph(spaces.Box(0, 1, (2,)), None),
            spaces.Sequence(spaces.Discrete(2)),
            spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
        ],
        ids=lambda space: type(space).__name__,
    )
    def test_unsupported_spaces_are_refused_with_what_is_supported(self, space):
        for refused in (space, spaces.Dict({"x": space}), spaces.Tuple((space,))):
            with pytest.raises(SpaceError, match="expected Box, Discrete, MultiDiscrete, MultiBin"):
                make_head(refused)

    def test_the_refusal_names_the_part(self):
        space = spaces.Dict({"x": spaces.Tuple((spaces.Discrete(2), spaces.Text(2)))})
        with pytest.raises(SpaceError, match=r"action\['x'\]\[1\]: expected .* got Text"):
            make_head(space)

    @pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (1,)), NESTED])
    def test_bernoulli_is_for_two_actions(self, space):
        with pytest.raises(SpaceError, match=r"expected Discrete\(2\) for bernoulli=True"):
            make_head(space, bernoulli=True)

    @pytest.mark.parametrize("space", [spaces.Dict(), spaces.Tuple(()), spaces.Box(-1, 1, (0,))])
    def test_nothing_to_choose_is_refused(self, space):
        with pytest.raises(SpaceError, match="at least one"):
            make_head(space)

    @pytest.mark.parametrize(
        "options",
        [
            {"gaussian": "cauchy"},
            {"std": "fixed"},
            {"log_std_init": -6.0},
            {"log_std_floor": float("nan")},
            {"log_std_init": float("inf")},
        ],
    )
    def test_unknown_options_are_refused(self, options):
        with pytest.raises(UsageError, match="expected"):
            make_head(spaces.Box(-1, 1, (1,)), **options)


def test_the_global_generators_are_not_touched():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for space, options in [*COUNTABLE.values(), *MEASURED.values()]:
        head = make_head(space, **options)
        head.draw(outputs_for(head, 8), generator())
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


INF, MAX = np.inf, np.finfo(np.float32).max


@pytest.mark.parametrize(
    ("low", "high", "first"),
    [(5, INF, 5), (-INF, -7, -7), (0, INF, 0), (5, MAX, 5), (-MAX, INF, 0), (-INF, INF, 0),
     (100, 101, 100.5), (-MAX, MAX, 0), (-1e6, 1e6, 0)],
)  # fmt: skip
def test_an_action_with_one_bound_begins_at_the_bound(
    low: float, high: float, first: float
) -> None:
    """Between 5 and infinity it began at 0: every draw was clipped to 5."""
    head = make_head(spaces.Box(np.float32([low]), np.float32([high])))
    assert head.to_env(np.zeros(1, np.float32)) == first
    on_device = head.to_env_on(torch.device("cpu"))
    assert on_device(torch.zeros(1)) == first
