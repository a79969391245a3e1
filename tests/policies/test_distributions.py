"""The distributions of our own against closed forms, quadrature and torch's transforms."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Categorical,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from rlpg.policies import IntegerBernoulli, Product, SquashedNormal
from rlpg.policies.distributions import DiagonalNormal, Joint, Layout, masked_logits


def squashed(loc: float, scale: float, half_width: float = 1.0, dtype=torch.float64):
    return SquashedNormal(*(torch.tensor([x], dtype=dtype) for x in (loc, scale, half_width)))


class TestDiagonalNormal:
    @pytest.mark.parametrize("shape", [(3,), (2, 2)])
    @pytest.mark.parametrize("is_dependent", [False, True])
    def test_is_what_torch_makes_of_normals(self, shape: tuple[int, ...], is_dependent: bool):
        generator = torch.Generator().manual_seed(0)
        batch = (5, 4)
        mean = torch.randn(*batch, *shape, generator=generator, requires_grad=True)
        log_std = torch.randn(*(batch if is_dependent else ()), *shape, generator=generator)
        log_std.requires_grad_()
        ours = DiagonalNormal(mean, log_std, len(shape))
        theirs = Independent(Normal(mean, log_std.exp().expand_as(mean)), len(shape))
        value = torch.randn(*batch, *shape, generator=generator)
        for got, expected in (
            (ours.log_prob(value), theirs.log_prob(value)),
            (ours.entropy(), theirs.entropy()),
            (ours.expand((2, *batch)).log_prob(value), theirs.expand((2, *batch)).log_prob(value)),
            (kl_divergence(ours, theirs), torch.zeros(batch)),
        ):
            torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            torch.autograd.grad(ours.log_prob(value).sum(), [mean, log_std]),
            torch.autograd.grad(theirs.log_prob(value).sum(), [mean, log_std]),
        )


@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_an_empty_batch_had_no_log_prob(shape: tuple[int, ...]):
    """A rank may have no sample of a minibatch, where torch's `Independent` raised. Of others the
    bits are torch's."""
    for size in (0, 5):
        mean = torch.randn(size, *shape, generator=torch.Generator().manual_seed(0))
        ours, theirs = (
            Joint(Normal(mean, 2.0), len(shape)),
            Independent(Normal(mean, 2.0), len(shape)),
        )
        normal = DiagonalNormal(mean, torch.zeros(shape), len(shape))
        product = Product([ours], Layout([(shape, torch.float32)]))
        kls = kl_divergence(ours, normal), kl_divergence(normal, normal)
        for found in (ours, normal):
            assert found.log_prob(mean).shape == found.entropy().shape == (size,)
        assert product.log_prob(mean.flatten(1)).shape == product.entropy().shape == (size,)
        assert {kl.shape for kl in kls} == {kl_divergence(product, product).shape} == {(size,)}
    assert torch.equal(ours.log_prob(mean), theirs.log_prob(mean))
    assert torch.equal(ours.entropy(), theirs.entropy())
    near = Normal(mean + 1, 1.0)
    kl = kl_divergence(theirs, Independent(near, len(shape)))
    assert torch.equal(kl_divergence(ours, Joint(near, len(shape))), kl)


class TestSquashedNormal:
    @pytest.mark.parametrize("u", [-30.0, -9.0, -1.0, 0.0, 0.3, 5.0, 30.0])
    def test_log_prob_is_the_closed_form(self, u):
        # log(1 - tanh(u)^2) = -2 log cosh(u), and log cosh(u) = |u| + log1p(e^{-2|u|}) - log 2
        log_cosh = abs(u) + math.log1p(math.exp(-2 * abs(u))) - math.log(2)
        log_normal = -0.5 * ((u - 0.2) / 0.7) ** 2 - math.log(0.7) - 0.5 * math.log(2 * math.pi)
        expected = log_normal - math.log(3.0) + 2 * log_cosh
        for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            dist = squashed(0.2, 0.7, 3.0, dtype)
            got = dist.log_prob(torch.tensor([u], dtype=dtype)).item()
            assert got == pytest.approx(expected, rel=rtol, abs=1e-6)

    @pytest.mark.parametrize("u", [-30.0, 30.0])
    def test_gradient_of_log_prob_is_finite_and_right_where_tanh_saturates(self, u):
        value = torch.tensor([u], requires_grad=True)
        squashed(0.0, 1.0, 1.0, torch.float32).log_prob(value).sum().backward()
        assert value.grad is not None
        # d/du (-u^2/2 + 2 log cosh u) = -u + 2 tanh u
        assert value.grad.item() == pytest.approx(-u + 2 * math.tanh(u), rel=1e-6)

    def test_log_prob_agrees_with_torchs_transforms_where_those_are_accurate(self):
        loc, scale, half_width = torch.tensor([0.5]), torch.tensor([0.8]), torch.tensor([2.0])
        peer = TransformedDistribution(
            Normal(loc, scale), [TanhTransform(), AffineTransform(3.0, half_width)]
        )
        u = torch.linspace(-2, 2, 9)[:, None]
        ours = SquashedNormal(loc, scale, half_width).log_prob(u)
        torch.testing.assert_close(ours, peer.log_prob(3.0 + 2.0 * u.tanh()), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1.5, 0.4), (-0.5, 2.0)])
    def test_density_integrates_to_one_over_the_box(self, loc, scale):
        from scipy import integrate  # takes a second, which collecting tests does not need

        dist = squashed(loc, scale, 2.5)

        def density(a: float) -> float:
            u = math.atanh(a / 2.5)
            return math.exp(dist.log_prob(torch.tensor([u], dtype=torch.float64)).item())

        mass, _ = integrate.quad(density, -2.5, 2.5, limit=200)
        assert mass == pytest.approx(1.0, abs=1e-6)

    @pytest.mark.parametrize(
        ("loc", "scale", "atol"),
        [(0.0, 0.1, 1e-6), (0.0, 1.0, 1e-5), (2.0, 1.0, 1e-5), (0.5, math.exp(2), 0.1)],
    )
    def test_entropy_is_that_of_the_squashed_action(self, loc, scale, atol):
        from scipy import integrate  # takes a second, which collecting tests does not need

        dist = squashed(loc, scale, 2.0)

        def integrand(u: float) -> float:
            value = torch.tensor([u], dtype=torch.float64)
            return -(dist.normal.log_prob(value).exp() * dist.log_prob(value)).item()

        edges = loc - 12 * scale, loc + 12 * scale
        expected, _ = integrate.quad(integrand, *edges, limit=500, points=[0.0])
        assert dist.entropy().item() == pytest.approx(expected, abs=atol)

    def test_entropy_has_the_gradient_of_its_finite_difference(self):
        scale = torch.tensor([0.9], dtype=torch.float64, requires_grad=True)
        half_width = torch.ones(1, dtype=torch.float64)
        entropy = SquashedNormal(torch.zeros(1, dtype=torch.float64), scale, half_width).entropy()
        (gradient,) = torch.autograd.grad(entropy.sum(), scale)
        up, down = squashed(0.0, 0.9 + 1e-5).entropy(), squashed(0.0, 0.9 - 1e-5).entropy()
        assert gradient.item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-6)

    def test_sample_does_not_differentiate_and_rsample_does(self):
        loc = torch.zeros(2, requires_grad=True)
        dist = SquashedNormal(loc, torch.ones(2), torch.ones(2))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert not dist.sample().requires_grad
            dist.rsample().sum().backward()
        assert loc.grad is not None
        assert torch.equal(loc.grad, torch.ones(2))

    def test_divergence_is_that_of_the_normals(self):
        p, q = squashed(0.0, 1.0), squashed(1.0, 2.0)
        # KL(N(0, 1) || N(1, 4)) = log 2 + (1 + 1) / 8 - 1/2
        assert kl_divergence(p, q).item() == pytest.approx(math.log(2) - 0.25)

    def test_expand(self):
        dist = squashed(0.3, 1.0).expand((4, 1))
        assert dist.batch_shape == (4, 1)
        assert dist.entropy().shape == (4, 1)


class TestMasks:
    logits = torch.tensor([[3.0, -5.0, 80.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    mask = torch.tensor([[True, True, False, False], [True, False, True, False]])

    def test_masked_probabilities_are_exactly_zero_and_the_others_the_softmax_of_the_rest(self):
        probs = Categorical(logits=masked_logits(self.logits, self.mask)).probs
        assert (probs[~self.mask] == 0).all()
        expected = torch.softmax(torch.tensor([1.0, 3.0]), -1)
        torch.testing.assert_close(probs[1, [0, 2]], expected)

    def test_entropy_divergence_and_their_gradients_are_finite(self):
        logits = self.logits.clone().requires_grad_()
        p = Categorical(logits=masked_logits(logits, self.mask))
        q = Categorical(logits=masked_logits(self.logits + 1.0, self.mask))
        wider = Categorical(logits=self.logits)
        total = p.entropy() + kl_divergence(p, q) + kl_divergence(p, wider)
        assert total.isfinite().all()
        total.sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert (logits.grad[~self.mask] == 0).all()

    def test_entropy_of_a_single_allowed_action_is_zero(self):
        mask = torch.tensor([False, True, False])
        assert Categorical(logits=masked_logits(torch.randn(3), mask)).entropy() == 0

    def test_a_row_without_allowed_actions_ignores_its_mask(self):
        mask = self.mask & torch.tensor([[True], [False]])
        assert torch.equal(masked_logits(self.logits, mask)[1], self.logits[1])
        assert torch.equal(
            masked_logits(self.logits, mask)[0], masked_logits(self.logits, self.mask)[0]
        )


def test_integer_bernoulli_is_a_bernoulli_on_integers():
    logits = torch.tensor([-1.0, 0.0, 2.0])
    ours, plain = IntegerBernoulli(logits=logits), Bernoulli(logits=logits)
    value = torch.tensor([0, 1, 1])
    assert torch.equal(ours.log_prob(value), plain.log_prob(value.float()))
    assert ours.enumerate_support().dtype == torch.int64
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert ours.sample((5,)).dtype == torch.int64
        assert ours.sample((5,)).shape == (5, 3)


NUMBERS = Layout([((), torch.float32)] * 2)


class TestProduct:
    def make(self) -> Product:
        normal = Independent(Normal(torch.zeros(5, 2), torch.ones(5, 2)), 1)
        choice = Categorical(logits=torch.zeros(5, 3))
        grid = Independent(Categorical(logits=torch.zeros(5, 2, 2, 4)), 2)
        kinds = [((2,), torch.float32), ((), torch.int64), ((2, 2), torch.int64)]
        return Product([normal, choice, grid], Layout(kinds))

    def test_log_prob_and_entropy_are_sums(self):
        product = self.make()
        assert product.batch_shape == (5,)
        assert product.event_shape == (7,)
        value = torch.tensor([0.5, -1.0, 2, 0, 1, 2, 3]).expand(5, 7)
        normal = -0.5 * (0.25 + 1.0) - math.log(2 * math.pi)
        expected = normal - math.log(3) - 4 * math.log(4)
        np.testing.assert_allclose(product.log_prob(value).numpy(), expected, rtol=1e-6)
        entropy = 1 + math.log(2 * math.pi) + math.log(3) + 4 * math.log(4)
        np.testing.assert_allclose(product.entropy().numpy(), entropy, rtol=1e-6)

    def test_samples_are_vectors_that_split_back(self):
        product = self.make()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sample = product.sample((3,))
        assert sample.shape == (3, 5, 7)
        assert sample.dtype == torch.float32
        shapes = [tuple(part.shape) for part in product.layout.split(sample)]
        assert shapes == [(3, 5, 2), (3, 5), (3, 5, 2, 2)]
        assert product.log_prob(sample).shape == (3, 5)

    def test_it_is_reparametrized_only_if_every_factor_is(self):
        assert not self.make().has_rsample
        beta = Beta(torch.ones(5) * 2, torch.ones(5) * 3)
        assert Product([beta, beta], NUMBERS).has_rsample

    def test_divergence_is_the_sum(self):
        p = Product([Normal(torch.zeros(1), 1.0)] * 2, NUMBERS)
        q = Product([Normal(torch.ones(1), 1.0)] * 2, NUMBERS)
        assert kl_divergence(p, q).item() == pytest.approx(1.0)  # twice 1/2

    def test_divergence_was_that_of_the_second_from_the_first(self):
        # log 2 + (1 + 1) / (2 * 4) - 1/2 per Normal; the other way round it would be 1.31.
        normals = [Normal(torch.zeros(1), 1.0), Normal(torch.ones(1), 2.0)]
        coins = [Bernoulli(torch.tensor([0.5])), Bernoulli(torch.tensor([0.9]))]
        p, q = (Product(factors, NUMBERS) for factors in zip(normals, coins, strict=True))
        of_coins = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
        expected = math.log(2) + 2 / 8 - 0.5 + of_coins
        assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-5)
