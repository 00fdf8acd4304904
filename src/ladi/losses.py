"""Losses that several stages share: masked means, token cross-entropy, Gaussian KL, velocity error.

Masks are bool, True = counts. Computed in float32, in nats; every reduction is named. What a mean sums may be divided
by a given `count` instead: that of a whole batch, where a micro-batch holds only some of it.
"""

from typing import Literal

import torch

from ladi.arrays import Bool, Float, Int, Tensor


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], count: float | None = None
) -> Float[Tensor, ""]:
    """The mean of `x` over the entries where `mask` is True, all dimensions together; or their sum over `count`.

    Raises:
        ValueError: if the mask is empty, where the mean is not defined.
    """
    _check_not_empty(mask)
    return torch.where(mask, x.float(), 0.0).sum() / (mask.sum() if count is None else count)


def token_log_probs(logits: Float[Tensor, "*batch V"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log softmax(logits) at the targets, no reduction; logits and targets are already aligned (no shift)."""
    logits = logits.float()
    return logits.gather(-1, targets[..., None].long()).squeeze(-1) - logits.logsumexp(-1)


def token_cross_entropy(
    logits: Float[Tensor, "B T V"],
    targets: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    reduction: Literal["token_mean", "sequence_sum_mean"] = "token_mean",
    count: float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the targets where `mask` is True; targets elsewhere may be anything, also -100.

    `token_mean`: mean over all valid tokens of the batch. `sequence_sum_mean`: sum over the valid tokens of a
    sequence, mean over the B sequences (the scale on which a VAE's beta is given). `count`: of tokens, or sequences.

    Raises:
        ValueError: if the mask is empty, or the reduction unknown.
    """
    _check_not_empty(mask)
    nll = -token_log_probs(logits, targets.masked_fill(~mask, 0))
    if reduction == "token_mean":
        return masked_mean(nll, mask, count)
    if reduction == "sequence_sum_mean":
        return torch.where(mask, nll, 0.0).sum() / (len(nll) if count is None else count)
    raise ValueError(f"unknown reduction {reduction!r}; use 'token_mean' or 'sequence_sum_mean'")


def gaussian_kl_to_standard(
    mean: Float[Tensor, "*batch N D"], log_var: Float[Tensor, "*batch N D"]
) -> Float[Tensor, "*batch"]:
    """KL(N(mean, exp(log_var)) || N(0, I)), summed over latents and channels.

    1/2 sum (mean^2 + exp(log_var) - 1 - log_var), VAE (arXiv:1312.6114, appendix B).
    """
    mean, log_var = mean.float(), log_var.float()
    return 0.5 * (mean.square() + torch.expm1(log_var) - log_var).sum(dim=(-2, -1))


def velocity_mse(
    v: Float[Tensor, "*batch N D"],
    target: Float[Tensor, "*batch N D"],
    mask: Bool[Tensor, "*batch"] | None = None,
    count: float | None = None,
) -> Float[Tensor, ""]:
    """Squared error of the velocity: mean over latents and channels, then over the blocks that `mask` keeps.

    Without a mask all blocks count. `count`: of blocks, beside a mask.

    Raises:
        ValueError: if the mask is empty.
    """
    error = (v.float() - target.float()).square().mean(dim=(-2, -1))  # (*batch)
    return error.mean() if mask is None else masked_mean(error, mask, count)


def _check_not_empty(mask: Bool[Tensor, "*shape"]) -> None:
    if not bool(mask.any()):
        raise ValueError(f"the mask of shape {tuple(mask.shape)} keeps nothing; drop such batches before the loss")
