"""Log-density and KL of Gaussian transitions, in nats and float32."""

import math
from typing import Literal

import torch

from ladi.arrays import Float, Tensor

Std = float | Float[Tensor, ""] | Float[Tensor, "*#batch #N #D"]
"""One number, or anything that broadcasts against (*batch, N, D): `sde_transition` gives (*batch, 1, 1)."""

Reduction = Literal["mean", "sum"]
"""Over the N x D dimensions of a block. `sum` is the true joint log-density or KL. `mean`, the project's
default, is that divided by N D, so that a clip range does not have to follow the size of the block; a range
c_sum for the sum is c_sum / (N D) here."""


def gaussian_log_prob(
    x: Float[Tensor, "*batch N D"],
    mean: Float[Tensor, "*batch N D"],
    std: Std,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*batch"]:
    """log N(x; mean, std^2 I) of every block, averaged (default) or summed over its latents and channels.

    Raises:
        ValueError: if any std is not positive, as in the noiseless last step of `integrate_sde`.
    """
    std = _checked_std(std, x.device)
    log_prob = -0.5 * ((x.float() - mean.float()) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    return _reduce(log_prob, reduction)


def gaussian_kl(
    mean_a: Float[Tensor, "*batch N D"],
    std_a: Std,
    mean_b: Float[Tensor, "*batch N D"],
    std_b: Std,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*batch"]:
    """KL(N(mean_a, std_a^2 I) || N(mean_b, std_b^2 I)), reduced as the log-density.

    Per number log(std_b / std_a) + (std_a^2 + (mean_a - mean_b)^2) / (2 std_b^2) - 1/2; exactly 0 for equal arguments.

    Raises:
        ValueError: if any std is not positive.
    """
    std_a, std_b = _checked_std(std_a, mean_a.device), _checked_std(std_b, mean_a.device)
    ratio = std_a / std_b
    kl = 0.5 * (ratio.square() - 1) - ratio.log() + 0.5 * ((mean_a.float() - mean_b.float()) / std_b).square()
    return _reduce(kl, reduction)


def _checked_std(std: Std, device: torch.device) -> Tensor:
    std = torch.as_tensor(std, dtype=torch.float32, device=device)
    if not bool((std > 0).all()):
        raise ValueError(f"std must be positive, its minimum is {std.min().item()}; leave noiseless steps out")
    return std


def _reduce(x: Float[Tensor, "*batch N D"], reduction: Reduction) -> Float[Tensor, "*batch"]:
    if reduction == "mean":
        return x.mean(dim=(-2, -1))
    if reduction == "sum":
        return x.sum(dim=(-2, -1))
    raise ValueError(f"unknown reduction {reduction!r}; use 'mean' or 'sum'")
