"""From noise to data: ODE steps (Euler, Heun) and the SDE step that reinforcement learning needs.

All solvers see the model as a `Velocity` and walk a falling grid of times (`times.sampling_grid`).
Everything is computed and returned in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from ladi.arrays import Float, Tensor
from ladi.draws import Source, normal
from ladi.flow.path import Time, broadcast_time, noise_from_velocity

Velocity = Callable[[Float[Tensor, "*batch N D"], Float[Tensor, "*batch"]], Float[Tensor, "*batch N D"]]
"""velocity(x_t, t) -> v; the solvers pass t in the leading shape of x_t."""

Push = Callable[[Float[Tensor, "*batch N D"], Tensor, Tensor], Float[Tensor, "*batch N D"]]
"""push(x_t, t, t_next) -> what guidance adds to the state in that step; t and t_next are numbers on the grid."""


def euler_step(
    velocity: Velocity,
    x: Float[Tensor, "*batch N D"],
    t: Float[Tensor, "*batch"],
    t_next: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch N D"]:
    """x at `t_next` by x + v(x, t) dt: one velocity, first order."""
    return x.float() + velocity(x, t).float() * broadcast_time(x, t_next - t)


def heun_step(
    velocity: Velocity,
    x: Float[Tensor, "*batch N D"],
    t: Float[Tensor, "*batch"],
    t_next: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch N D"]:
    """x at `t_next` by the trapezium rule on an Euler prediction: two velocities, second order."""
    dt = broadcast_time(x, t_next - t)
    v = velocity(x, t).float()
    v_next = velocity(x.float() + v * dt, t_next).float()
    return x.float() + (v + v_next) / 2 * dt


ODE_STEPS = {"euler": euler_step, "heun": heun_step}


def _check_grid(times: Float[Tensor, " num_times"]) -> None:
    if len(times) < 2 or not bool((times[1:] < times[:-1]).all()) or times[0] > 1 or times[-1] < 0:
        raise ValueError(f"times must fall strictly within [0, 1] and be at least 2, got {times.tolist()}")


def integrate(
    velocity: Velocity,
    x: Float[Tensor, "*batch N D"],
    times: Float[Tensor, " num_times"],
    method: Literal["euler", "heun"] = "euler",
) -> Float[Tensor, "*batch N D"]:
    """The state at the last of `times` of the ODE dx = v dt that starts at `x`.

    Gradients flow through every step. Heun evaluates the velocity also at the last time, 0 on a full grid.

    Raises:
        ValueError: if times do not fall strictly within [0, 1], or the method is unknown.
    """
    _check_grid(times)
    if method not in ODE_STEPS:
        raise ValueError(f"unknown method {method!r}; use one of {sorted(ODE_STEPS)}")
    x = x.float()
    for t, t_next in pairwise(times.float().to(x.device)):
        x = ODE_STEPS[method](velocity, x, t.expand(x.shape[:-2]), t_next.expand(x.shape[:-2]))
    return x


def sde_transition(
    x_t: Float[Tensor, "*batch N D"],
    v: Float[Tensor, "*batch N D"],
    t: Time,
    t_next: Time,
    noise_level: float,
) -> tuple[Float[Tensor, "*batch N D"], Float[Tensor, "*batch 1 1"]]:
    """Mean and standard deviation of x at `t_next`, given x at `t`.

    The SDE sampler of Flow-GRPO (arXiv:2505.05470), which keeps the marginals of the ODE for every
    noise_level (up to the error of the step; 0 is the Euler step itself):

        sigma_t = noise_level sqrt(t / (1 - t')),   t' = t, but t' = t_next where t = 1
        mean = x_t + [v + sigma_t^2 / (2 t) (x_t + (1 - t) v)] dt
        std  = sigma_t sqrt(-dt),                   dt = t_next - t < 0

    Sampler and trainer must both use this function: then the policy ratio starts at 1. Times that are
    numbers or lie on the CPU are checked for free, times on a GPU cost a synchronisation.

    Raises:
        ValueError: unless 0 <= t_next < t <= 1 everywhere and noise_level >= 0.
    """
    if noise_level < 0:
        raise ValueError(f"noise_level is {noise_level}; it must be 0 (the ODE) or more")
    falling = (torch.as_tensor(t_next) >= 0) & (torch.as_tensor(t_next) < torch.as_tensor(t))
    if not bool((falling & (torch.as_tensor(t) <= 1)).all()):
        raise ValueError(f"need 0 <= t_next < t <= 1, got t={t}, t_next={t_next}")
    noise = noise_from_velocity(x_t, v, t)
    t, t_next = broadcast_time(x_t, t), broadcast_time(x_t, t_next)
    dt = t_next - t
    sigma = noise_level * torch.sqrt(t / (1 - torch.where(t == 1, t_next, t)))
    drift = v.float() + sigma.square() / (2 * t) * noise
    return x_t.float() + drift * dt, sigma * torch.sqrt(-dt)


@dataclass(frozen=True, kw_only=True)
class SdePath:
    """A sampled path: states[k + 1] = means[k] + stds[k] * standard normal noise; means contain the pushes."""

    states: Float[Tensor, "num_times *batch N D"]
    means: Float[Tensor, "num_steps *batch N D"]
    stds: Float[Tensor, "num_steps *batch 1 1"]
    """0 for a step without noise: it has no density and takes no part in a policy loss."""
    pushes: Float[Tensor, "num_steps *batch N D"] | None
    """Displacements by guidance; a trainer adds these same constants to its own means."""


def noisy_steps(
    times: Float[Tensor, " num_times"], noise_level: float, window: tuple[int, int] | None = None
) -> list[float]:
    """The noise level of each step: 0 for steps that end at t = 0 or lie outside `window` = (first, last + 1).

    Raises:
        ValueError: if the window names no step of the grid.
    """
    num_steps = len(times) - 1
    first, stop = window or (0, num_steps)
    if not 0 <= first < stop <= num_steps:
        raise ValueError(f"sde_window must satisfy 0 <= first < stop <= {num_steps} (num_steps), got {window}")
    return [noise_level if first <= k < stop and times[k + 1] > 0 else 0.0 for k in range(num_steps)]


def integrate_sde(
    velocity: Velocity,
    x: Float[Tensor, "*batch N D"],
    times: Float[Tensor, " num_times"],
    noise_level: float,
    generator: Source,
    push: Push | None = None,
    window: tuple[int, int] | None = None,
) -> SdePath:
    """A sample of the SDE of `sde_transition` along `times`, with what a policy gradient needs of each step.

    A step that ends at t = 0, or lies outside `window`, is an Euler step, without noise and so without the score term
    that makes up for noise: keeping that term alone would shrink the data's std (0.474 for 0.480 at 10 steps, noise
    level 0.7, true std 0.5). `push` is added to every mean.

    Raises:
        ValueError: if times do not fall strictly within [0, 1], noise_level < 0, or the window is not on the grid.
    """
    _check_grid(times)
    levels = noisy_steps(times, noise_level, window)
    states, means, stds, pushes = [x.float()], [], [], []
    for (t, t_next), level in zip(pairwise(times), levels, strict=True):
        x_t = states[-1]
        v = velocity(x_t, t.float().to(x.device).expand(x.shape[:-2]))
        mean, std = sde_transition(x_t, v, t, t_next, level)
        if push is not None:
            pushes.append(push(x_t, t, t_next))
            mean = mean + pushes[-1]
        means.append(mean)
        stds.append(std)
        states.append(mean)
        if level:
            states[-1] = mean + std * normal(x.shape, generator).to(x.device)
    return SdePath(
        states=torch.stack(states),
        means=torch.stack(means),
        stds=torch.stack(stds),
        pushes=torch.stack(pushes) if pushes else None,
    )
