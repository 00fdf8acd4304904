import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from ladi.flow.logprob import gaussian_kl, gaussian_log_prob
from ladi.flow.solver import sde_transition


@pytest.fixture
def gaussians():
    generator = torch.Generator().manual_seed(0)
    x, mean_a, mean_b = torch.randn(3, 2, 3, 4, 5, generator=generator)
    std = torch.rand(2, 3, 1, 1, generator=generator) + 0.1
    return x, mean_a, mean_b, std


def block_normal(mean, std):
    return Independent(Normal(mean, std.expand_as(mean)), 2)


def test_the_summed_log_prob_is_that_of_torch(gaussians):
    x, mean, _, std = gaussians
    assert torch.allclose(gaussian_log_prob(x, mean, std, "sum"), block_normal(mean, std).log_prob(x), rtol=1e-5)


def test_the_default_is_the_mean_over_the_dimensions_of_the_block(gaussians):
    x, mean, _, std = gaussians
    expected = block_normal(mean, std).log_prob(x) / (4 * 5)
    assert torch.allclose(gaussian_log_prob(x, mean, std), expected, rtol=1e-5)


def test_the_std_may_differ_by_channel(gaussians):
    x, mean, _, _ = gaussians
    std = torch.linspace(0.5, 1.5, 5).expand(1, 1, 1, 5)
    expected = Normal(mean, std).log_prob(x).sum((-2, -1))
    assert torch.allclose(gaussian_log_prob(x, mean, std, "sum"), expected, rtol=1e-5)


def test_the_std_may_be_one_number(gaussians):
    x, mean, _, _ = gaussians
    assert torch.equal(gaussian_log_prob(x, mean, 0.5), gaussian_log_prob(x, mean, torch.full((2, 3, 1, 1), 0.5)))


def test_the_summed_kl_is_that_of_torch(gaussians):
    _, mean_a, mean_b, std = gaussians
    expected = kl_divergence(block_normal(mean_a, std), block_normal(mean_b, 0.7 * std))
    assert torch.allclose(gaussian_kl(mean_a, std, mean_b, 0.7 * std, "sum"), expected, rtol=1e-5)


def test_the_default_kl_is_the_mean_over_the_dimensions_of_the_block(gaussians):
    _, mean_a, mean_b, std = gaussians
    expected = kl_divergence(block_normal(mean_a, std), block_normal(mean_b, std)) / (4 * 5)
    assert torch.allclose(gaussian_kl(mean_a, std, mean_b, std), expected, rtol=1e-5)


def test_the_kl_from_itself_is_exactly_0(gaussians):
    _, mean, _, std = gaussians
    assert (gaussian_kl(mean, std, mean, std) == 0).all()


def test_the_kl_of_two_sde_transitions_is_the_closed_form_in_the_velocities(gaussians):
    """Flow-GRPO: |dt| / 2 (1 / sigma + sigma (1 - t) / (2 t))^2 |v - v_ref|^2."""
    x, v, v_ref, _ = gaussians
    t, t_next, noise_level = 0.6, 0.5, 0.7
    mean, std = sde_transition(x, v, t, t_next, noise_level)
    mean_ref, _ = sde_transition(x, v_ref, t, t_next, noise_level)
    sigma = noise_level * (t / (1 - t)) ** 0.5
    factor = (t - t_next) / 2 * (1 / sigma + sigma * (1 - t) / (2 * t)) ** 2
    expected = factor * (v - v_ref).square().sum((-2, -1))
    assert torch.allclose(gaussian_kl(mean, std, mean_ref, std, "sum"), expected, rtol=1e-4)


def test_a_noiseless_step_is_refused(gaussians):
    x, mean, _, _ = gaussians
    with pytest.raises(ValueError, match="std must be positive"):
        gaussian_log_prob(x, mean, 0.0)
    with pytest.raises(ValueError, match="std must be positive"):
        gaussian_kl(x, 1.0, mean, 0.0)


def test_an_unknown_reduction_is_refused(gaussians):
    x, mean, _, std = gaussians
    with pytest.raises((ValueError, TypeError)):
        gaussian_log_prob(x, mean, std, "max")
