"""The surrogate against TRL's GRPO loss, closed forms and finite differences; advantages against their definitions."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

from ladi.rl.objective import (
    Normaliser,
    SurrogateConfig,
    group_advantages,
    reward_statistics,
    surrogate,
    text_advantages,
    token_kl,
)

S, T = 6, 5


def draws(seed: int = 0):
    """Log-probabilities, older ones, advantages and a mask with a row of a single element."""
    generator = torch.Generator().manual_seed(seed)
    new = -torch.rand(S, T, generator=generator) - 0.1
    old = new + 0.5 * torch.randn(S, T, generator=generator)
    advantages = torch.randn(S, generator=generator)
    mask = torch.arange(T) < torch.tensor([5, 1, 3, 2, 4, 5])[:, None]
    return new, old, advantages, mask


def whole(mask, max_length=T):
    return Normaliser(num_sequences=len(mask), num_elements=float(mask.sum()), max_length=max_length)


def trl_loss(new, old, advantages, mask, config, beta=0.0, ref=None):
    """The loss that TRL's trainer computes from the same numbers."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import GRPOTrainer

    metrics = {"train": {}}

    class Metrics(dict):
        def __missing__(self, key):
            self[key] = []
            return self[key]

    metrics["train"] = Metrics()
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=config.importance_sampling_level,
        beta=beta,
        loss_type=config.loss_type,
        epsilon_low=config.epsilon,
        epsilon_high=config.high,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=T,
        accelerator=accelerator,
        _entropy_bonus_enabled=False,
        _metrics=metrics,
    )
    ids = torch.zeros(S, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones(S, 1, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("epsilon_high", [None, 0.28])
def test_the_loss_and_its_gradient_equal_those_of_trl(loss_type, level, epsilon_high):
    config = SurrogateConfig(loss_type=loss_type, importance_sampling_level=level, epsilon_high=epsilon_high)
    new, old, advantages, mask = draws()
    results = []
    for function in (
        lambda x: surrogate(x, old, advantages, mask, config, whole(mask))[0],
        lambda x: trl_loss(x, old, advantages, mask, config),
    ):
        x = new.clone().requires_grad_()
        value = function(x)
        value.backward()
        results.append((value.detach(), x.grad))
    (ours, our_grad), (theirs, their_grad) = results
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(our_grad, their_grad, rtol=0, atol=1e-6)
    assert our_grad.abs().max() > 0


def test_the_kl_penalty_equals_that_of_trl():
    config = SurrogateConfig()
    new, old, advantages, mask = draws()
    ref = new + 0.3 * torch.randn(S, T, generator=torch.Generator().manual_seed(9))
    ours, _ = surrogate(new, old, advantages, mask, config, whole(mask), token_kl(new, ref), beta=0.1)
    torch.testing.assert_close(ours, trl_loss(new, old, advantages, mask, config, beta=0.1, ref=ref))


def test_the_clip_fraction_is_that_of_trl():
    config, (new, old, advantages, mask) = SurrogateConfig(), draws()
    _, stats = surrogate(new, old, advantages, mask, config, whole(mask))
    ratio, a = (new - old).exp(), advantages[:, None]
    outside = ((ratio < 0.8) & (a < 0)) | ((ratio > 1.2) & (a > 0))
    torch.testing.assert_close(stats["clip_fraction"], outside[mask].float().mean())
    torch.testing.assert_close(stats["ratio_mean"], ratio[mask].mean())


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_on_policy_the_gradient_is_the_policy_gradient(loss_type, level):
    """-A / normaliser at every element that counts, whatever the level; sequence levels share it among T elements."""
    config = SurrogateConfig(loss_type=loss_type, importance_sampling_level=level)
    new, _, advantages, mask = draws()
    x = new.clone().requires_grad_()
    value, stats = surrogate(x, new, advantages, mask, config, whole(mask))
    value.backward()
    lengths = mask.sum(1, keepdim=True)
    size = {"grpo": S * lengths, "dr_grpo": S * T * torch.ones(S, 1), "dapo": mask.sum() * torch.ones(S, 1)}[loss_type]
    torch.testing.assert_close(x.grad, torch.where(mask, -advantages[:, None] / size, 0.0))
    assert stats["ratio_mean"].item() == pytest.approx(1)
    assert stats["ratio_max"].item() == pytest.approx(1)
    assert stats["clip_fraction"] == 0


def test_the_geometric_level_is_the_clipped_geometric_mean():
    config = SurrogateConfig(importance_sampling_level="geometric", epsilon=0.3, epsilon_high=0.5)
    new, old, advantages, mask = draws()
    value, _ = surrogate(new, old, advantages, mask, config, whole(mask))
    expected = 0.0
    for i in range(S):
        product, length = 1.0, int(mask[i].sum())
        for j in range(length):
            ratio = math.exp(new[i, j] - old[i, j])
            product *= min(ratio, 1.5) if advantages[i] > 0 else max(ratio, 0.7)
        expected -= advantages[i].item() * product ** (1 / length) / S
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_means_over_numbers_are_clipped_where_their_sums_are():
    config = SurrogateConfig(loss_type="dapo", importance_sampling_level="token", epsilon=0.02, epsilon_high=0.05)
    new, old, advantages, mask = draws()
    _, of_sums = surrogate(new, old, advantages, mask, config, whole(mask))
    means = (new / 64, old / 64, advantages, mask)
    _, of_means = surrogate(*means, config.per_number(64), whole(mask))
    _, undivided = surrogate(*means, config, whole(mask))
    assert of_sums["clip_fraction"] == of_means["clip_fraction"] > undivided["clip_fraction"]
    assert config.per_number(1) == config
    assert config.per_number(64).loss_type == "dapo"


def test_elements_outside_the_mask_change_nothing():
    config, (new, old, advantages, mask) = SurrogateConfig(), draws()
    other = torch.where(mask, new, 100.0)
    a, b = (surrogate(x, old, advantages, mask, config, whole(mask))[0] for x in (new, other))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_add_up_to_the_whole(loss_type):
    """`loop.run` takes the mean over micro-batches: each is normalised by its share of the counts."""
    config, (new, old, advantages, mask) = SurrogateConfig(loss_type=loss_type), draws()
    full, _ = surrogate(new, old, advantages, mask, config, whole(mask))
    half = Normaliser(S / 2, float(mask.sum()) / 2, T)
    parts = [
        surrogate(new[rows], old[rows], advantages[rows], mask[rows], config, half)[0]
        for rows in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(parts) / 2, full)


def test_ratios_of_elements_without_advantage_are_not_logged():
    config, (new, old, advantages, mask) = SurrogateConfig(), draws()
    few = torch.where(torch.arange(S) < 2, advantages, 0.0)
    stats = surrogate(new, old, few, mask, config, whole(mask))[1]
    ratios = (new - old).exp()[:2][mask[:2]]
    assert float(stats["ratio_mean"]) == pytest.approx(float(ratios.mean()), rel=1e-5)
    assert float(stats["ratio_max"]) == pytest.approx(float(ratios.max()), rel=1e-5)
    assert surrogate(new, old, torch.zeros(S), mask, config, whole(mask))[1] == {}


def test_group_advantages_are_standard_scores():
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    found = group_advantages(rewards, "group")
    expected = (rewards[0] - 0.5) / (rewards[0].std() + 1e-4)
    torch.testing.assert_close(found[0], expected)
    assert (found[1] == 0).all()


def test_equal_rewards_give_exactly_zero_even_where_their_mean_is_rounded():
    rewards = torch.full((1, 3), 0.1)
    assert (group_advantages(rewards, "group") == 0).all()


def test_reward_scales():
    rewards = torch.tensor([[0.0, 1.0], [0.0, 10.0]])
    torch.testing.assert_close(group_advantages(rewards, "none"), torch.tensor([[-0.5, 0.5], [-5.0, 5.0]]))
    by_batch = group_advantages(rewards, "batch")
    torch.testing.assert_close(by_batch, (rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-4))


def test_advantages_are_clamped():
    rewards = torch.zeros(1, 100)
    rewards[0, 0] = 1
    assert group_advantages(rewards, "group").max() == 5


def test_text_advantages_within_a_latent_ignore_the_other_latents():
    rewards = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    within, pooled = (text_advantages(rewards, kind, "none") for kind in ("within_latent", "pooled"))
    torch.testing.assert_close(within, torch.tensor([[[-0.5, 0.5], [0.0, 0.0]]]))
    torch.testing.assert_close(pooled, torch.tensor([[[-0.75, 0.25], [0.25, 0.25]]]))
    assert (text_advantages(rewards[..., :1], "within_latent", "group") == 0).all()


def test_reward_variance_splits_into_between_and_within():
    rewards = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    stats = reward_statistics(rewards)
    total = rewards.flatten(1).var(1, correction=0).mean()
    torch.testing.assert_close(stats["reward/between_latent_var"] + stats["reward/within_latent_var"], total)
    assert reward_statistics(torch.ones(2, 2, 2))["reward/zero_variance_share"] == 1


def test_the_token_kl_estimate_is_unbiased_and_not_negative():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    estimate = token_kl(policy.log()[None], reference.log()[None])[0]
    assert (estimate >= 0).all()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(policy), torch.distributions.Categorical(reference)
    )
    torch.testing.assert_close((policy * estimate).sum(), expected)


@pytest.mark.parametrize("fields", [{"epsilon": 0.0}, {"epsilon": 1.0}, {"epsilon_high": -0.1}])
def test_a_clip_range_outside_its_bounds_is_refused(fields):
    with pytest.raises(ValueError, match="epsilon"):
        SurrogateConfig(**fields)
