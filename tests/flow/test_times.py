import math

import pytest
import torch

from ladi.flow.times import draw_times, sampling_grid


def drawn(count=20_000, seed=0, **kwargs):
    return draw_times((count,), torch.Generator().manual_seed(seed), **kwargs)


def test_times_have_the_shape_asked_for():
    assert draw_times((2, 3), torch.Generator().manual_seed(0)).shape == (2, 3)


@pytest.mark.parametrize("mean", [0.0, 40.0, -40.0])
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_times_lie_strictly_between_0_and_1(distribution, mean):
    times = drawn(distribution=distribution, mean=mean)
    assert times.min() > 0
    assert times.max() < 1


def test_uniform_times_have_the_moments_of_the_uniform():
    times = drawn()
    assert times.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert times.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_the_logit_of_logit_normal_times_is_normal():
    logits = drawn(distribution="logit_normal", mean=0.7, std=0.5).logit()
    assert logits.mean().item() == pytest.approx(0.7, abs=0.02)
    assert logits.std().item() == pytest.approx(0.5, abs=0.02)


def test_a_seed_fixes_the_times():
    assert torch.equal(drawn(10, seed=3), drawn(10, seed=3))
    assert not torch.equal(drawn(10, seed=3), drawn(10, seed=4))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    drawn(10)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_std_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="std is 0"):
        drawn(10, distribution="logit_normal", std=0.0)


def test_an_unknown_distribution_is_refused():
    with pytest.raises((ValueError, TypeError)):
        drawn(10, distribution="cosine")


@pytest.mark.parametrize("shift", [0.1, 0.37, 1.0, 3.0, 7.3])
@pytest.mark.parametrize("num_steps", [1, 10, 50])
def test_the_grid_falls_from_exactly_1_to_exactly_0(num_steps, shift):
    grid = sampling_grid(num_steps, shift=shift)
    assert len(grid) == num_steps + 1
    assert grid[0] == 1
    assert grid[-1] == 0
    assert (grid[1:] < grid[:-1]).all()


def test_the_grid_is_even_without_a_shift():
    assert torch.allclose(sampling_grid(4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_a_shift_multiplies_the_odds_of_noise():
    """t' / (1 - t') = s t / (1 - t): how SD3 derives the shift, from equal signal-to-noise ratios."""
    even, shifted = sampling_grid(10)[1:-1], sampling_grid(10, shift=3.0)[1:-1]
    assert torch.allclose(shifted.logit(), even.logit() + math.log(3.0), atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_a_shift_that_is_not_positive_and_finite_is_refused(shift):
    with pytest.raises(ValueError, match="shift is"):
        sampling_grid(10, shift=shift)


def test_a_grid_without_steps_is_refused():
    with pytest.raises(ValueError, match="num_steps is 0"):
        sampling_grid(0)
