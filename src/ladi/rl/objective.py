"""Advantages and the clipped surrogate, one and the same for texts and for latent trajectories.

A sequence is a text with T tokens or a trajectory with T denoising transitions. Its elements have log-probabilities
under the policy (`log_probs`) and under the policy that sampled it (`old_log_probs`); `mask` says which elements count.
The names are those of TRL's GRPOTrainer, whose loss this equals for texts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ladi.arrays import Bool, Float, Tensor

LossType = Literal["grpo", "dr_grpo", "dapo"]
ImportanceLevel = Literal["token", "sequence", "geometric"]
RewardScale = Literal["group", "batch", "none"]

EPS = 1e-4
"""Added to standard deviations of rewards, as in TRL."""


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig:
    """The clipped surrogate of one kind of sequence."""

    loss_type: LossType = "grpo"
    """`grpo`: mean over a sequence's elements, then over sequences (arXiv:2402.03300). `dr_grpo`: sum over all elements
    by sequences and longest length (arXiv:2503.20783). `dapo`: mean over all elements (arXiv:2503.14476)."""
    importance_sampling_level: ImportanceLevel = "token"
    """`token`: a ratio for each element. `sequence`: one, of the mean log-ratio (GSPO, arXiv:2507.18071). `geometric`:
    the geometric mean of ratios that are clipped one by one (GMPO, arXiv:2507.20673)."""
    epsilon: float = 0.2
    """Ratios below 1 - epsilon are clipped."""
    epsilon_high: float | None = None
    """Ratios above 1 + epsilon_high are clipped; None takes epsilon."""

    def __post_init__(self):
        if not 0 < self.epsilon < 1 or (self.epsilon_high is not None and self.epsilon_high <= 0):
            raise ValueError(f"need 0 < epsilon < 1 and epsilon_high > 0, got {self.epsilon} and {self.epsilon_high}")

    @property
    def high(self) -> float:
        """The upper clip range."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    def per_number(self, count: int) -> "SurrogateConfig":
        """The same with the clip range divided by `count`: for log-ratios that are means over so many numbers."""
        return replace(self, epsilon=self.epsilon / count, epsilon_high=self.high / count)


@dataclass(frozen=True)
class Normaliser:
    """What sums are divided by: counts over the whole batch, so that micro-batches add up to it."""

    num_sequences: int | float
    num_elements: int | float
    max_length: int


Total = Callable[[Tensor], Tensor]
"""The sum of a tensor over the processes that share a batch."""


def alone(x: Tensor) -> Tensor:
    """The sum over one process."""
    return x


def batch_std(rewards: Float[Tensor, "P G"], total: Total) -> Float[Tensor, ""]:
    """The unbiased standard deviation of all rewards of the batch, those of other processes included."""
    values = rewards.double()
    sums = total(torch.stack([torch.ones_like(values).sum(), values.sum(), values.square().sum()]))
    count, mean = sums[0], sums[1] / sums[0]
    return ((sums[2] - count * mean.square()).clamp(min=0) / (count - 1)).sqrt().float()


def group_advantages(
    rewards: Float[Tensor, "P G"], scale: RewardScale, clamp: float = 5.0, total: Total = alone
) -> Float[Tensor, "P G"]:
    """Reward minus its group's mean, divided by a standard deviation: the group's, the batch's, or none.

    Standard deviations are unbiased, as in TRL. A group whose rewards are all equal gets exactly 0.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "group":
        centred = centred / (rewards.std(1, keepdim=True) + EPS)
    elif scale == "batch":
        centred = centred / (batch_std(rewards, total) + EPS)
    elif scale != "none":
        raise ValueError(f"unknown scale_rewards {scale!r}; use group, batch or none")
    spread = rewards.amax(1, keepdim=True) > rewards.amin(1, keepdim=True)
    return torch.where(spread, centred, 0.0).clamp(-clamp, clamp)


def text_advantages(
    rewards: Float[Tensor, "P R M"],
    kind: Literal["within_latent", "pooled"],
    scale: RewardScale,
    clamp: float = 5.0,
    total: Total = alone,
) -> Float[Tensor, "P R M"]:
    """Advantages of M texts per latent: against the texts of the same latent, or against all of the question's.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind == "within_latent":
        if rewards.shape[2] == 1:
            return torch.zeros_like(rewards)
        return group_advantages(rewards.flatten(0, 1), scale, clamp, total).view_as(rewards)
    if kind == "pooled":
        return group_advantages(rewards.flatten(1), scale, clamp, total).view_as(rewards)
    raise ValueError(f"unknown text_advantage {kind!r}; use within_latent or pooled")


def log_ratios(
    log_ratio: Float[Tensor, "S T"],
    advantages: Float[Tensor, " S"],
    mask: Bool[Tensor, "S T"],
    config: SurrogateConfig,
) -> tuple[Float[Tensor, "S _"], Float[Tensor, "S _"]]:
    """Log importance weights before and after clipping, (S, T) at the level `token` and (S, 1) else."""
    low, high = math.log(1 - config.epsilon), math.log(1 + config.high)
    if config.importance_sampling_level == "sequence":
        log_ratio = sequence_mean(log_ratio, mask)[:, None]
    # The smaller of ratio * A and clip(ratio) * A: clipped from above where A > 0, from below where A < 0.
    positive = advantages[:, None] > 0
    clipped = torch.where(positive, log_ratio.clamp(max=high), log_ratio.clamp(min=low))
    if config.importance_sampling_level == "geometric":
        clipped = sequence_mean(clipped, mask)[:, None]
    return log_ratio, clipped


def sequence_mean(x: Float[Tensor, "S T"], mask: Bool[Tensor, "S T"]) -> Float[Tensor, " S"]:
    """The mean over each sequence's elements; 0 for a sequence without any."""
    return torch.where(mask, x, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def surrogate(
    log_probs: Float[Tensor, "S T"],
    old_log_probs: Float[Tensor, "S T"],
    advantages: Float[Tensor, " S"],
    mask: Bool[Tensor, "S T"],
    config: SurrogateConfig,
    normaliser: Normaliser,
    kl: Float[Tensor, "S T"] | None = None,
    beta: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Loss to be minimised, -E[min(ratio A, clip(ratio) A)] + beta KL, and what to log of the ratios that count (their
    advantage is not 0), where there are any.

    On policy every ratio is 1 and the gradient is the plain policy gradient, -E[A grad log_prob].
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    raw, clipped = log_ratios(log_ratio, advantages, mask, config)
    per_element = (-clipped.exp() * advantages[:, None]).expand_as(log_ratio)
    if kl is not None and beta:
        per_element = per_element + beta * kl
    loss = aggregate(per_element, mask, config.loss_type, normaliser)
    with torch.no_grad():
        ratio = raw.exp()
        counted = mask if ratio.shape[1] > 1 or mask.shape[1] == 1 else mask.any(1, keepdim=True)
        active = counted & (advantages != 0)[:, None]
        outside = (raw > math.log(1 + config.high)) & (advantages[:, None] > 0)
        outside |= (raw < math.log(1 - config.epsilon)) & (advantages[:, None] < 0)
        stats = {}
        if bool(active.any()):
            stats = {
                "ratio_mean": ratio[active].mean(),
                "ratio_max": ratio[active].max(),
                "clip_fraction": outside[active].float().mean(),
            }
        if kl is not None:
            stats["kl"] = torch.where(mask, kl, 0.0).sum() / mask.sum().clamp(min=1)
    return loss, stats


def aggregate(
    per_element: Float[Tensor, "S T"], mask: Bool[Tensor, "S T"], loss_type: LossType, normaliser: Normaliser
) -> Float[Tensor, ""]:
    """One number from the elements' losses, by the counts of the whole batch.

    Raises:
        ValueError: if the loss type is unknown.
    """
    if loss_type == "grpo":
        return sequence_mean(per_element, mask).sum() / normaliser.num_sequences
    total = torch.where(mask, per_element, 0.0).sum()
    if loss_type == "dr_grpo":
        return total / (normaliser.num_sequences * normaliser.max_length)
    if loss_type == "dapo":
        return total / max(normaliser.num_elements, 1.0)
    raise ValueError(f"unknown loss_type {loss_type!r}; use grpo, dr_grpo or dapo")


def token_kl(log_probs: Float[Tensor, "S T"], ref_log_probs: Float[Tensor, "S T"]) -> Float[Tensor, "S T"]:
    """The unbiased, positive estimate of KL(policy || reference) at sampled tokens: exp(d) - d - 1, d = ref - policy.

    (Schulman's k3, as in GRPO, arXiv:2402.03300, equation 4.)
    """
    difference = ref_log_probs - log_probs
    return torch.expm1(difference) - difference


def reward_statistics(rewards: Float[Tensor, "P R M"]) -> dict[str, Tensor]:
    """Mean reward, its variance between and within latents, and the share of questions without any contrast.

    `between` is the variance of the latents' mean rewards, `within` the mean variance of one latent's texts: if the
    first is near 0, the latent carries no signal.
    """
    utilities = rewards.mean(2)
    flat = rewards.flatten(1)
    return {
        "reward/mean": rewards.mean(),
        "reward/between_latent_var": utilities.var(1, correction=0).mean(),
        "reward/within_latent_var": rewards.var(2, correction=0).mean(),
        "reward/zero_variance_share": (flat.amax(1) == flat.amin(1)).float().mean(),
    }
