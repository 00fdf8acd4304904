import math

import pytest
import torch

from ladi.flow.guidance import relative_strength, repulsion, repulsion_push, with_guidance
from ladi.flow.solver import integrate_sde
from ladi.flow.times import sampling_grid


def blocks(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def on_a_line(*positions):
    """Blocks of one number each, (G, 1, 1)."""
    return torch.tensor(positions)[:, None, None]


def still(x, t):
    return torch.zeros_like(x)


def pair_distances(z):
    return torch.pdist(z.flatten(1))


def test_scale_1_is_the_conditional_velocity_itself():
    cond = lambda x, t: x  # noqa: E731
    assert with_guidance(cond, still, 1.0) is cond


def test_scale_0_is_the_unconditional_velocity():
    x = blocks(2, 3, 4)
    assert torch.equal(with_guidance(still, lambda x, t: x, 0.0)(x, torch.ones(2)), x)


def test_the_scale_extrapolates_from_unconditional_through_conditional():
    guided = with_guidance(lambda x, t: x + 3, lambda x, t: x + 1, 2.0)
    assert torch.equal(guided(torch.zeros(1, 1, 1), torch.ones(1)), torch.full((1, 1, 1), 5.0))


@pytest.mark.parametrize(("bandwidth", "divisor"), [("median", 1.0), ("median_over_log_n", math.log(5))])
def test_the_force_is_the_gradient_of_the_potential_it_claims(bandwidth, divisor):
    """+ gradient of sum over pairs of d^2 exp(-d^2 / s^2), by autograd with s fixed, in float64."""
    z = blocks(5, 2, 3)
    scale = pair_distances(z).double().quantile(0.5).square() / divisor
    leaf = z.double().requires_grad_()
    d2 = pair_distances(leaf).square()
    (d2 * torch.exp(-d2 / scale)).sum().backward()
    assert torch.allclose(repulsion(z, bandwidth).double(), leaf.grad, atol=1e-5)


def test_each_group_of_a_batch_has_its_own_force():
    z = blocks(2, 3, 4, 2, 3)
    assert torch.allclose(repulsion(z)[1, 2], repulsion(z[1, 2]), atol=1e-6)


def test_the_force_does_not_change_under_translation():
    z = blocks(4, 2, 3)
    assert torch.allclose(repulsion(z + 7.0), repulsion(z), atol=1e-4)


def test_the_forces_of_a_group_cancel():
    assert torch.allclose(repulsion(blocks(6, 2, 3)).sum(0), torch.zeros(2, 3), atol=1e-5)


def test_the_force_stays_in_float32_under_autocast():
    z = blocks(6, 16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = repulsion(z)
    assert torch.equal(found, repulsion(z))


def test_a_group_of_one_feels_no_force():
    assert torch.equal(repulsion(blocks(2, 1, 3, 4)), torch.zeros(2, 1, 3, 4))


@pytest.mark.parametrize("bandwidth", ["median", "median_over_log_n"])
def test_equal_blocks_feel_no_force(bandwidth):
    assert torch.equal(repulsion(blocks(1, 3, 4).expand(5, 3, 4), bandwidth), torch.zeros(5, 3, 4))


def test_a_group_whose_median_distance_is_0_stays_finite():
    assert repulsion(on_a_line(0.0, 0.0, 0.0, 0.0, 100.0)).isfinite().all()


def test_the_gradient_through_the_force_is_finite_for_equal_blocks():
    z = torch.ones(4, 2, 3, requires_grad=True)
    repulsion(z).sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("bandwidth", ["median", "median_over_log_n"])
def test_blocks_that_do_not_run_are_as_good_as_removed(bandwidth):
    """Groups of 0 to 6 running blocks of 6; the others lie far out, where they would set the bandwidth."""
    running = torch.arange(6) < torch.arange(7)[:, None]
    running = torch.stack(
        [row[torch.randperm(6, generator=torch.Generator().manual_seed(i))] for i, row in enumerate(running)]
    )
    z = torch.where(running[..., None, None], blocks(7, 6, 2, 3), 100 + blocks(7, 6, 2, 3, seed=1))
    force = repulsion(z, bandwidth, running)
    for group, kept, found in zip(z, running, force, strict=True):
        alone = repulsion(group[kept], bandwidth) if kept.any() else group[kept]
        torch.testing.assert_close(found[kept], alone, rtol=1e-4, atol=1e-4)
        assert (found[~kept] == 0).all()
    assert force[3:].norm() > 0.1


@pytest.mark.parametrize("bandwidth", ["median", "median_over_log_n"])
def test_the_force_of_running_blocks_is_bit_for_bit_that_without_a_mask(bandwidth):
    z = blocks(3, 7, 2, 3)
    assert torch.equal(repulsion(z, bandwidth, torch.ones(3, 7, dtype=torch.bool)), repulsion(z, bandwidth))


def test_two_blocks_at_the_median_feel_no_force():
    assert torch.allclose(repulsion(blocks(2, 3, 4)), torch.zeros(2, 3, 4), atol=1e-6)


def test_equally_far_blocks_attract_under_the_narrow_bandwidth():
    z = torch.eye(8)[:, None, :]
    moved = z + 0.01 * repulsion(z, "median_over_log_n")
    assert (pair_distances(moved) < pair_distances(z)).all()


def guided_line(gamma_max):
    """0, 1, 10: the distances are 1, 9 and 10, the bandwidth 9."""
    z = on_a_line(0.0, 1.0, 10.0)
    return z.flatten(), (z + repulsion_push(gamma_max)(z, torch.tensor(1.0), torch.tensor(0.9))).flatten()


def test_a_step_pushes_a_near_pair_apart():
    before, after = guided_line(0.1)
    assert after[1] - after[0] > before[1] - before[0] + 0.01


def test_a_step_pulls_a_far_pair_together():
    before, after = guided_line(0.1)
    assert after[2] - after[0] < before[2] - before[0] - 0.001


def test_guidance_of_strength_0_changes_nothing():
    before, after = guided_line(0.0)
    assert torch.equal(before, after)


def test_the_push_fades_in_proportion_to_t():
    z, push = blocks(4, 2, 3), repulsion_push(0.5)
    late, early = (push(z, torch.tensor(t), torch.tensor(t - 0.1)) for t in (0.2, 0.8))
    assert torch.allclose(early, 4 * late, atol=1e-6)


def still_path(num_steps):
    """Displacement of resting blocks by the push alone."""
    z = blocks(4, 2, 3)
    path = integrate_sde(still, z, sampling_grid(num_steps), 0.0, torch.Generator(), repulsion_push(0.5))
    return path.states[-1] - z


def test_the_push_hardly_depends_on_the_number_of_steps():
    coarse, fine = still_path(50), still_path(100)
    assert torch.allclose(coarse, fine, atol=0.02)
    assert coarse.norm() > 0.1


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match="gamma_max is -1"):
        repulsion_push(-1.0)


def test_an_unknown_bandwidth_is_refused():
    with pytest.raises((ValueError, TypeError)):
        repulsion(blocks(2, 3, 4), "mean")


def test_the_relative_strength_is_the_quotient_of_the_lengths():
    z = blocks(2, 3, 4)
    assert torch.allclose(relative_strength(-0.3 * z, z), torch.tensor([0.3, 0.3]))
