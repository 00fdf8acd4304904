"""Guidance: functions from a velocity to a velocity, which no solver needs to know about.

Two kinds: classifier-free guidance (arXiv:2207.12598) towards a condition, and the repulsion of LaDiR
(arXiv:2510.04573, "diversity guidance") that spreads the latents sampled for one question.
"""

from typing import Literal

import torch

from ladi.arrays import Bool, Float, Tensor
from ladi.flow.solver import Push, Velocity

Bandwidth = Literal["median", "median_over_log_n"]

MAX_EXPONENT = 100.0
"""exp(-100) is 0 beside anything in float32; the cap keeps inf * 0 away where the bandwidth is 0."""


def with_guidance(cond: Velocity, uncond: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance: v_uncond + scale (v_cond - v_uncond); scale 1 means none: `cond` itself."""
    if scale == 1.0:
        return cond

    def guided(x, t):
        v_uncond = uncond(x, t).float()
        return v_uncond + scale * (cond(x, t).float() - v_uncond)

    return guided


def repulsion(
    z: Float[Tensor, "*batch G N D"], bandwidth: Bandwidth = "median", running: Bool[Tensor, "*batch G"] | None = None
) -> Float[Tensor, "*batch G N D"]:
    """The force F on each of the G blocks of a group, to be ADDED to the state.

        F(z_i) = sum_{j != i} 2 (1 - d_ij^2 / s^2) exp(-d_ij^2 / s^2) (z_i - z_j),   d_ij = |z_i - z_j|

    (LaDiR, arXiv:2510.04573.) It is the gradient, s held fixed, of the sum over pairs of d^2 exp(-d^2 / s^2):
    pairs nearer than s repel, farther ones attract. d is the distance of whole blocks, all N D numbers.

    The bandwidth s is a constant to autograd, from the median d of the pairs i < j of the group:
    `median`: s = median(d). Two blocks then lie exactly at s and feel nothing, and neither do many blocks in
    high dimension, where all distances are alike.
    `median_over_log_n`: s^2 = median(d)^2 / log G, as in SVGD (arXiv:1608.04471, section 5). It narrows s for
    G >= 3, so only pairs nearer than median / sqrt(log G) repel; blocks that are all equally far ATTRACT,
    since this kernel, unlike SVGD's, changes sign at s.

    It is computed in float32, also where autocast would have products in bfloat16: forces are differences of near
    numbers, and those of a group add up to 0.

    Blocks that are not `running` (None: all are) neither feel nor exert a force, as if they were not there. A group of
    one, and one whose blocks are all equal, feels no force.

    Raises:
        ValueError: if the bandwidth is unknown.
    """
    if bandwidth not in ("median", "median_over_log_n"):
        raise ValueError(f"unknown bandwidth {bandwidth!r}; use 'median' or 'median_over_log_n'")
    group_size = z.shape[-3]
    if group_size == 1:
        return torch.zeros_like(z, dtype=torch.float32)
    flat = z.float().flatten(-2)  # (*batch, G, N D)
    flat = flat - flat[..., :1, :].detach()  # F depends on differences only; a near origin keeps them exact
    # Through a matrix product the distances of near pairs would be rounding noise.
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")  # (*batch, G, G)
    running = torch.ones_like(z[..., 0, 0], dtype=torch.bool) if running is None else running
    is_pair = running[..., :, None] & running[..., None, :]
    scale = _median_of_pairs(distance.detach(), is_pair).square()
    if bandwidth == "median_over_log_n":
        scale = scale / running.sum(-1).double().log().float()
    scale = scale.nan_to_num(0.0)[..., None, None]  # fewer than two are running: there is no pair
    exponent = distance.square() / scale.clamp_min(torch.finfo(torch.float32).tiny)
    exponent = exponent.clamp(max=MAX_EXPONENT)
    weight = torch.where(is_pair, 2 * (1 - exponent) * torch.exp(-exponent), 0.0)  # (*batch, G, G)
    with torch.autocast(z.device.type, enabled=False):
        force = weight.sum(-1, keepdim=True) * flat - weight @ flat  # sum_j w_ij (z_i - z_j)
    return force.unflatten(-1, z.shape[-2:])


def _median_of_pairs(
    distance: Float[Tensor, "*batch G G"], is_pair: Bool[Tensor, "*batch G G"]
) -> Float[Tensor, "*batch"]:
    """The median over the pairs i < j that count (the mean of the middle two if their number is even), else NaN."""
    row, column = torch.triu_indices(*distance.shape[-2:], offset=1, device=distance.device)
    return distance.masked_fill(~is_pair, torch.nan)[..., row, column].nanquantile(0.5, dim=-1)


def repulsion_push(
    gamma_max: float, bandwidth: Bandwidth = "median", running: Bool[Tensor, "*batch G"] | None = None
) -> Push:
    """The displacement |dt| gamma_t F(x), gamma_t = gamma_max t, of a step of x (..., G, N, D): near pairs move apart.

    Differs from the paper, which adds gamma_t F to the state once per step, whatever the size of the step: here the
    push is an integral over time and does not depend on the number of steps. `running` as in `repulsion`.

    Raises:
        ValueError: if gamma_max is negative.
    """
    if gamma_max < 0:
        raise ValueError(f"gamma_max is {gamma_max}; it must be 0 (no guidance) or more")

    def push(x, t, t_next):
        return gamma_max * float(t) * float(t - t_next) * repulsion(x, bandwidth, running)

    return push


def relative_strength(
    gamma_force: Float[Tensor, "*batch N D"], v: Float[Tensor, "*batch N D"]
) -> Float[Tensor, "*batch"]:
    """|gamma F| / |v| of every block, norms over latents and channels: what to log of the guidance."""
    v_norm = v.float().flatten(-2).norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return gamma_force.float().flatten(-2).norm(dim=-1) / v_norm
