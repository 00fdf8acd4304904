import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import cross_entropy

from ladi.losses import (
    gaussian_kl_to_standard,
    masked_mean,
    token_cross_entropy,
    token_log_probs,
    velocity_mse,
)

MASK = torch.tensor([[True, True, False, False], [True, True, True, True]])


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 7, generator=generator)
    return logits, torch.randint(7, (2, 4), generator=generator)


def test_the_masked_mean_is_the_mean_of_what_is_selected():
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(masked_mean(x, MASK), x[MASK].mean(), atol=1e-6)


def test_what_is_masked_may_be_nan():
    x = torch.where(MASK, 2.0, torch.nan)
    assert masked_mean(x, MASK) == 2.0


def test_what_is_masked_gets_no_gradient():
    x = torch.ones(2, 4, requires_grad=True)
    masked_mean(x, MASK).backward()
    assert torch.allclose(x.grad, MASK / 6)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="keeps nothing"):
        masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool))


def test_token_log_probs_are_those_of_a_categorical(tokens):
    logits, targets = tokens
    expected = torch.distributions.Categorical(logits=logits).log_prob(targets)
    assert torch.allclose(token_log_probs(logits, targets), expected, atol=1e-5)


def test_token_log_probs_of_half_precision_are_float32(tokens):
    assert token_log_probs(tokens[0].bfloat16(), tokens[1]).dtype == torch.float32


def test_the_token_mean_is_torchs_cross_entropy_with_ignored_targets(tokens):
    logits, targets = tokens
    ignored = targets.masked_fill(~MASK, -100)
    expected = cross_entropy(logits.flatten(0, 1), ignored.flatten())
    assert torch.allclose(token_cross_entropy(logits, ignored, MASK), expected, atol=1e-5)


def test_the_sequence_sum_is_torchs_sum_over_the_number_of_sequences(tokens):
    logits, targets = tokens
    ignored = targets.masked_fill(~MASK, -100)
    expected = cross_entropy(logits.flatten(0, 1), ignored.flatten(), reduction="sum") / 2
    assert torch.allclose(token_cross_entropy(logits, ignored, MASK, "sequence_sum_mean"), expected, atol=1e-5)


def test_cross_entropy_of_nothing_is_refused(tokens):
    with pytest.raises(ValueError, match="keeps nothing"):
        token_cross_entropy(*tokens, torch.zeros_like(MASK))


def test_an_unknown_reduction_is_refused(tokens):
    with pytest.raises((ValueError, TypeError)):
        token_cross_entropy(*tokens, MASK, "sum")


def test_the_kl_to_standard_is_that_of_torch():
    mean, log_var = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    posterior = Independent(Normal(mean, (log_var / 2).exp()), 2)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 2)
    assert torch.allclose(gaussian_kl_to_standard(mean, log_var), kl_divergence(posterior, prior), rtol=1e-5)


def test_the_kl_is_0_at_the_prior():
    assert torch.equal(gaussian_kl_to_standard(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)), torch.zeros(2))


@pytest.fixture
def velocities():
    return torch.randn(2, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))


def test_the_velocity_error_without_a_mask_is_torchs_mse(velocities):
    v, target = velocities
    assert torch.allclose(velocity_mse(v, target), torch.nn.functional.mse_loss(v, target))


def test_the_velocity_error_sees_only_the_blocks_that_the_mask_keeps(velocities):
    v, target = velocities
    expected = torch.nn.functional.mse_loss(v[MASK], target[MASK])
    assert torch.allclose(velocity_mse(v, target, MASK), expected)


def test_velocity_error_over_no_block_is_refused(velocities):
    with pytest.raises(ValueError, match="keeps nothing"):
        velocity_mse(*velocities, torch.zeros_like(MASK))
