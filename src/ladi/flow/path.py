"""The straight path between data (t = 0) and noise (t = 1), and what can be read off its velocity.

Rectified flow (arXiv:2209.03003), flow matching (arXiv:2210.02747), with time turned so that t = 1 is noise:

    x_t = (1 - t) x0 + t noise                                                    (1)
    v   = d x_t / dt = noise - x0                                                 (2)

so that x0 = x_t - t v, noise = x_t + (1 - t) v, and for Gaussian noise the score is -E[noise | x_t] / t.
Everything is computed and returned in float32.
"""

import torch

from ladi.arrays import Float, Tensor

Time = float | int | Float[Tensor, ""] | Float[Tensor, "*batch"]
"""One time for everything, or one for every entry of the leading (batch) dimensions."""


def broadcast_time(x: Float[Tensor, "*batch N D"], t: Time) -> Float[Tensor, "*batch 1 1"]:
    """`t` in float32 on the device of `x`, shaped to multiply it.

    Raises:
        ValueError: if `t` is neither one number nor of the shape of x's leading dimensions.
    """
    t = torch.as_tensor(t, dtype=torch.float32)
    if t.ndim > 0 and t.shape != x.shape[:-2]:
        raise ValueError(
            f"t has shape {tuple(t.shape)}, but x of shape {tuple(x.shape)} needs one number "
            f"or the leading shape {tuple(x.shape[:-2])}; expand t first"
        )
    return t.to(x.device).expand(x.shape[:-2])[..., None, None]


def mix(x0: Float[Tensor, "*batch N D"], noise: Float[Tensor, "*batch N D"], t: Time) -> Float[Tensor, "*batch N D"]:
    """The noisy latent x_t, equation (1)."""
    x0, noise, t = x0.float(), noise.float(), broadcast_time(x0, t)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Float[Tensor, "*batch N D"], noise: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch N D"]:
    """The velocity that flow matching regresses on, equation (2); it does not depend on t."""
    return noise.float() - x0.float()


def x0_from_velocity(
    x_t: Float[Tensor, "*batch N D"], v: Float[Tensor, "*batch N D"], t: Time
) -> Float[Tensor, "*batch N D"]:
    """The data that `v` points back to: x_t - t v (E[x0 | x_t] if v is the exact marginal velocity)."""
    return x_t.float() - broadcast_time(x_t, t) * v.float()


def noise_from_velocity(
    x_t: Float[Tensor, "*batch N D"], v: Float[Tensor, "*batch N D"], t: Time
) -> Float[Tensor, "*batch N D"]:
    """The noise that `v` points to: x_t + (1 - t) v (E[noise | x_t] if v is the exact marginal velocity)."""
    return x_t.float() + (1 - broadcast_time(x_t, t)) * v.float()


def score_from_velocity(
    x_t: Float[Tensor, "*batch N D"], v: Float[Tensor, "*batch N D"], t: Time
) -> Float[Tensor, "*batch N D"]:
    """The gradient of log p_t at x_t: -(x_t + (1 - t) v) / t, for an exact marginal velocity.

    Raises:
        ValueError: if any t is 0, where the score of the data is not determined by v.
    """
    if bool((torch.as_tensor(t) == 0).any()):
        raise ValueError("the score is not defined at t = 0 by the velocity; use t > 0")
    return -noise_from_velocity(x_t, v, t) / broadcast_time(x_t, t)
