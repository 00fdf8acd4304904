"""Times: random ones to train on, a falling grid to sample with. t = 1 is noise, t = 0 is data."""

import math
from typing import Literal

import torch

from ladi.arrays import Float, Tensor

EDGE = torch.finfo(torch.float32).eps
"""Drawn times keep this distance from 0 and 1, where the score or sigma_t is not finite."""


def draw_times(
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    distribution: Literal["uniform", "logit_normal"] = "uniform",
    mean: float = 0.0,
    std: float = 1.0,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*shape"]:
    """Independent times in the open interval (0, 1).

    `uniform`, or `logit_normal`: t = sigmoid(mean + std n), n ~ N(0, 1), which trains the middle of the path
    more (Stable Diffusion 3, arXiv:2403.03206, section 3.1); a positive mean moves it towards the noise.
    `mean` and `std` belong to `logit_normal` only. The draw is made on the generator's device, then moved
    to `device` (None: it stays).

    Raises:
        ValueError: if std is not positive or the distribution is unknown.
    """
    if std <= 0:
        raise ValueError(f"std is {std}; it must be positive")
    if distribution == "uniform":
        times = torch.rand(shape, generator=generator, device=generator.device)
    elif distribution == "logit_normal":
        normal = torch.randn(shape, generator=generator, device=generator.device)
        times = torch.sigmoid(mean + std * normal)
    else:
        raise ValueError(f"unknown distribution {distribution!r}; use 'uniform' or 'logit_normal'")
    return times.clamp(EDGE, 1 - EDGE).to(device or generator.device)


def sampling_grid(num_steps: int, *, shift: float = 1.0) -> Float[Tensor, "{num_steps}+1"]:
    """The num_steps + 1 times 1 = t_K > ... > t_0 = 0, first entry first to be used, on the CPU.

    Evenly spaced t become t' = s t / (1 + (s - 1) t) with s = `shift` (Stable Diffusion 3, arXiv:2403.03206,
    equation 23 and after): s > 1 spends more steps near the noise, s < 1 near the data, 1 leaves them even.

    Raises:
        ValueError: if num_steps < 1, or shift is not positive and finite.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a grid needs at least 1 step")
    if not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"shift is {shift}; it must be positive and finite (1 means even spacing)")
    even = torch.linspace(1, 0, num_steps + 1)
    return shift * even / (1 - even + shift * even)  # this form of the denominator is exact at both ends
