import pytest
import torch

from ladi.flow.path import mix, noise_from_velocity, score_from_velocity, velocity_target, x0_from_velocity


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 3, 4, 5, generator=generator)


TIMES = torch.tensor([[0.1, 0.5, 0.9], [0.25, 0.75, 1.0]])


def test_the_path_starts_at_the_data(pair):
    assert torch.equal(mix(*pair, 0.0), pair[0])


def test_the_path_ends_at_the_noise(pair):
    assert torch.equal(mix(*pair, 1), pair[1])


def test_the_velocity_target_is_the_time_derivative_of_the_path(pair):
    difference = (mix(*pair, 0.75) - mix(*pair, 0.25)) / 0.5
    assert torch.allclose(velocity_target(*pair), difference, atol=1e-5)


def test_x0_is_recovered_from_the_velocity(pair):
    x0, noise = pair
    x_t = mix(x0, noise, TIMES)
    assert torch.allclose(x0_from_velocity(x_t, velocity_target(x0, noise), TIMES), x0, atol=1e-5)


def test_the_noise_is_recovered_from_the_velocity(pair):
    x0, noise = pair
    x_t = mix(x0, noise, TIMES)
    assert torch.allclose(noise_from_velocity(x_t, velocity_target(x0, noise), TIMES), noise, atol=1e-5)


def test_the_velocity_survives_the_round_trip_over_x0_and_noise(pair):
    x_t, v = pair
    back = velocity_target(x0_from_velocity(x_t, v, TIMES), noise_from_velocity(x_t, v, TIMES))
    assert torch.allclose(back, v, atol=1e-5)


def test_each_entry_of_the_batch_has_its_own_time(pair):
    x_t = mix(*pair, TIMES)
    assert torch.equal(x_t[1, 0], mix(pair[0][1, 0], pair[1][1, 0], 0.25))


def test_one_time_stands_for_all(pair):
    assert torch.equal(mix(*pair, torch.tensor(0.3)), mix(*pair, torch.full((2, 3), 0.3)))


def test_the_score_is_the_gradient_of_the_log_density():
    """Data N(0, 0.25): x_t is Gaussian, and autograd differentiates torch's own density."""
    t, data_std = 0.6, 0.5
    marginal_std = ((1 - t) ** 2 * data_std**2 + t**2) ** 0.5
    x = torch.linspace(-2, 2, 7).reshape(1, 7, 1).requires_grad_()
    torch.distributions.Normal(0.0, marginal_std).log_prob(x).sum().backward()
    v = (t - (1 - t) * data_std**2) / marginal_std**2 * x.detach()
    assert torch.allclose(score_from_velocity(x.detach(), v, t), x.grad, atol=1e-5)


def test_the_score_is_refused_at_the_data(pair):
    with pytest.raises(ValueError, match="t > 0"):
        score_from_velocity(*pair, torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.5, 0.5]]))


def test_half_precision_is_computed_in_float32(pair):
    assert mix(pair[0].bfloat16(), pair[1].bfloat16(), 0.3).dtype == torch.float32


def test_a_time_that_does_not_match_the_batch_is_refused(pair):
    with pytest.raises((ValueError, TypeError)):
        mix(*pair, torch.full((3,), 0.5))
