"""Solvers against data x0 ~ N(0, DATA_STD^2), whose velocity is known in closed form."""

from itertools import pairwise

import pytest
import torch

from ladi.flow.solver import euler_step, integrate, integrate_sde, noisy_steps, sde_transition
from ladi.flow.times import sampling_grid

DATA_STD = 0.5


def marginal_var(t):
    return ((1 - t) * DATA_STD) ** 2 + t**2


def exact_velocity(x, t):
    """E[noise - x0 | x_t = x]."""
    t = t[..., None, None]
    return (t - (1 - t) * DATA_STD**2) / marginal_var(t) * x


def propagated_std(times, noise_level, start_var):
    """The std after all steps: every step is linear in x, so its factor is its mean at x = 1."""
    var = torch.as_tensor(start_var)
    path = integrate_sde(exact_velocity, torch.ones(1, 1, 1), times, noise_level, torch.Generator().manual_seed(0))
    for k in range(len(times) - 1):
        factor = path.means[k] / path.states[k]
        var = factor.square() * var + path.stds[k].square()
    return var.sqrt().item()


@pytest.mark.parametrize(
    ("num_steps", "noise_level", "std"),
    [(10, 0.0, 0.431), (10, 0.3, 0.444), (10, 0.7, 0.479), (30, 0.0, 0.477), (30, 0.7, 0.496)],
)
def test_the_final_std_is_the_one_measured_independently(num_steps, noise_level, std):
    """Values of the method's notes, measured by sampling with another program: good to about 0.001."""
    final = propagated_std(sampling_grid(num_steps), noise_level, 1.0)
    assert final == pytest.approx(std, abs=0.0015)


@pytest.mark.parametrize("noise_level", [0.0, 0.3, 0.7, 1.2])
def test_the_sde_keeps_the_marginal_of_the_ode(noise_level):
    times = torch.linspace(0.95, 0.05, 401)
    final = propagated_std(times, noise_level, marginal_var(times[0]))
    assert final == pytest.approx(marginal_var(times[-1]).sqrt().item(), rel=0.01)


@pytest.mark.parametrize("noise_level", [0.0, 0.7])
def test_the_full_sde_ends_at_the_data_in_the_limit_of_many_steps(noise_level):
    assert propagated_std(sampling_grid(1000), noise_level, 1.0) == pytest.approx(DATA_STD, rel=0.01)


def test_samples_of_the_sde_have_the_propagated_std():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 2, 4, generator=generator)
    path = integrate_sde(exact_velocity, x, sampling_grid(10), 0.7, generator)
    expected = propagated_std(sampling_grid(10), 0.7, 1.0)
    assert path.states[-1].std().item() == pytest.approx(expected, rel=0.02)


def test_noise_level_0_is_the_ode():
    x, generator = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)), torch.Generator()
    path = integrate_sde(exact_velocity, x, sampling_grid(7), 0.0, generator)
    assert torch.equal(path.states[-1], integrate(exact_velocity, x, sampling_grid(7)))


def test_noise_level_0_has_no_spread():
    x = torch.ones(2, 1, 1)
    _, std = sde_transition(x, x, 0.5, 0.4, 0.0)
    assert torch.equal(std, torch.zeros(2, 1, 1))


def test_the_path_replays_through_the_same_transition():
    """What a policy ratio of 1 rests on: recomputed in one (B, R) batch, means and stds are the same."""
    generator = torch.Generator().manual_seed(0)
    times = sampling_grid(5)
    path = integrate_sde(exact_velocity, torch.randn(2, 3, 4, generator=generator), times, 0.7, generator)
    states = path.states[:-2].transpose(0, 1)  # (B, R, N, D), R = the steps that have a density
    t, t_next = times[:-2].expand(2, -1), times[1:-1].expand(2, -1)
    mean, std = sde_transition(states, exact_velocity(states, t), t, t_next, 0.7)
    assert torch.equal(mean.transpose(0, 1), path.means[:-1])
    assert torch.equal(std.transpose(0, 1), path.stds[:-1])


def test_the_last_step_adds_no_noise():
    generator = torch.Generator().manual_seed(0)
    path = integrate_sde(exact_velocity, torch.ones(2, 3, 4), sampling_grid(5), 0.7, generator)
    assert torch.equal(path.states[-1], path.means[-1])
    assert (path.stds[:-1] > 0).all()


def test_the_first_step_takes_its_noise_from_the_next_time():
    """At t = 1 on an even grid of 10: sigma = a sqrt(1 / 0.1), so std = a sqrt(1 / 0.1) sqrt(0.1) = a."""
    x = torch.ones(1, 1, 1)
    _, std = sde_transition(x, x, 1.0, 0.9, 0.7)
    assert std.item() == pytest.approx(0.7, rel=1e-5)


def test_one_number_and_a_batch_of_times_give_the_same_transition():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    one = sde_transition(x, -x, 0.5, torch.tensor(0.4), 0.7)
    batch = sde_transition(x, -x, torch.full((2, 3), 0.5), torch.full((2, 3), 0.4), 0.7)
    assert all(torch.equal(a, b) for a, b in zip(one, batch, strict=True))


@pytest.mark.parametrize(("t", "t_next"), [(0.5, 0.5), (0.4, 0.5), (1.1, 0.5), (0.5, -0.1)])
def test_a_transition_that_does_not_fall_within_0_and_1_is_refused(t, t_next):
    x = torch.ones(1, 1, 1)
    with pytest.raises(ValueError, match="t_next < t"):
        sde_transition(x, x, t, t_next, 0.7)


def test_a_negative_noise_level_is_refused():
    x = torch.ones(1, 1, 1)
    with pytest.raises(ValueError, match="noise_level is -1"):
        sde_transition(x, x, 0.5, 0.4, -1.0)


@pytest.mark.parametrize(("method", "ratio", "steps"), [("euler", 2, (20, 40, 80)), ("heun", 4, (8, 16, 32))])
def test_the_error_falls_with_the_order_of_the_method(method, ratio, steps):
    """Halving the step divides the error by 2^order; the exact flow scales x by the marginal std."""
    exact = (marginal_var(torch.tensor(0.1)) / marginal_var(torch.tensor(0.9))).sqrt()
    errors = []
    for num_steps in steps:
        times = torch.linspace(0.9, 0.1, num_steps + 1)
        x = integrate(exact_velocity, torch.ones(1, 1, 1), times, method)
        errors.append((x - exact).abs().item())
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(ratio, rel=0.15)


def test_one_euler_step_follows_the_straight_path_exactly():
    x0, noise = torch.full((1, 2, 3), 0.25), torch.full((1, 2, 3), -1.5)
    x = euler_step(lambda x, t: noise - x0, noise, torch.ones(1), torch.zeros(1))
    assert torch.equal(x, x0)


def test_the_velocity_gets_times_in_the_leading_shape_of_x():
    shapes = []
    integrate(lambda x, t: shapes.append(t.shape) or x, torch.ones(2, 3, 4, 5), sampling_grid(2), "heun")
    assert set(shapes) == {(2, 3)}


def test_only_steps_of_the_window_are_noisy():
    x = torch.ones(2, 3, 4)
    path = integrate_sde(exact_velocity, x, sampling_grid(6), 0.7, torch.Generator().manual_seed(0), window=(1, 3))
    assert [bool((std > 0).all()) for std in path.stds] == [False, True, True, False, False, False]
    for k in (0, 3, 4, 5):
        assert torch.equal(path.states[k + 1], path.means[k])


@pytest.mark.parametrize("window", [(0, 0), (2, 1), (-1, 2), (0, 7)])
def test_a_window_outside_the_grid_is_refused(window):
    with pytest.raises(ValueError, match="sde_window must satisfy"):
        noisy_steps(sampling_grid(6), 0.7, window)


def test_pushes_are_stored_and_part_of_the_means():
    x, generator = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    path = integrate_sde(exact_velocity, x, sampling_grid(4), 0.7, generator, push=lambda x, t, t_next: t * x)
    times = sampling_grid(4)
    for k, (t, t_next) in enumerate(pairwise(times)):
        mean, _ = sde_transition(
            path.states[k], exact_velocity(path.states[k], t.expand(3)), t, t_next, 0.7 if t_next > 0 else 0.0
        )
        torch.testing.assert_close(path.means[k], mean + path.pushes[k])
        torch.testing.assert_close(path.pushes[k], t * path.states[k])


def test_gradients_flow_through_the_whole_chain():
    x = torch.ones(1, 1, 1, requires_grad=True)
    end = integrate(exact_velocity, x, sampling_grid(5))
    end.sum().backward()
    assert x.grad.item() == pytest.approx(end.item(), rel=1e-5)  # the flow is linear


@pytest.mark.parametrize("times", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5], [1.5, 0.0], [1.0, -0.5]])
def test_times_that_do_not_fall_within_0_and_1_are_refused(times):
    with pytest.raises(ValueError, match="must fall strictly"):
        integrate(exact_velocity, torch.ones(1, 1, 1), torch.tensor(times))


def test_an_unknown_method_is_refused():
    with pytest.raises((ValueError, TypeError)):
        integrate(exact_velocity, torch.ones(1, 1, 1), sampling_grid(2), "midpoint")
