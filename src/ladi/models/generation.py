"""From questions to latent trajectories and texts: the sampling loop of a latent reasoner.

Blocks are drawn one after the other. The first is denoised for all R trajectories of a question on one shared
context; later ones on the context that each trajectory has made for itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.flow.guidance import with_guidance, with_repulsion
from ladi.flow.solver import integrate_sde, integrate_trajectory
from ladi.flow.times import sampling_grid
from ladi.models.backbone import expand_rows
from ladi.models.decoding import Prefix, continue_text


@runtime_checkable
class Reasoner(Protocol):
    """What sampling needs of a reasoner: a sequence grown piece by piece, and velocities in its context."""

    backbone: Any
    config: Any

    def open(self, question: Any, dropped: Any = None) -> Prefix: ...
    def context(self, prefix: Prefix) -> Any: ...
    def velocity(self, context: Any, x_t: Any, t: Any) -> Any: ...
    def add_block(self, prefix: Prefix, z: Any, running: Any) -> Any: ...
    def close(self, prefix: Prefix) -> Prefix: ...


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How latents are drawn and texts are read."""

    num_steps: int = 30
    """K: denoising steps of each block."""
    initial_noise: float = 1.0
    """sigma_0: standard deviation of the latents at t = 1."""
    guidance: float = 0.0
    """gamma_max of the repulsion between the trajectories of a question; 0 means none."""
    bandwidth: Literal["median", "median_over_log_n"] = "median"
    """Of the repulsion."""
    guidance_scale: float = 1.0
    """Classifier-free guidance against the dropped question; 1 means none."""
    noise_level: float = 0.0
    """a: noise of the SDE sampler; 0 is the ODE."""
    time_shift: float = 1.0
    """Above 1 the grid spends more steps near noise."""
    temperature: float = 0.0
    """Of the text; 0 is greedy."""

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.temperature < 0 or self.noise_level < 0 or self.initial_noise <= 0:
            raise ValueError(
                "need temperature >= 0, noise_level >= 0 and initial_noise > 0, got "
                f"{self.temperature}, {self.noise_level} and {self.initial_noise}"
            )


@dataclass(frozen=True)
class Generation:
    """What `generate` returns: B questions, R trajectories each.

    `latents` are the finished blocks, standardised; `num_blocks` says how many of the K are real.
    `trajectories` hold every block at every time of the grid `times` (1 first).
    """

    texts: list[list[str]]
    latents: Float[Tensor, "B R K N D"]
    num_blocks: Int[Tensor, "B R"]
    trajectories: Float[Tensor, "B R K steps N D"]
    times: Float[Tensor, " steps"]
    tokens_processed: int


def denoise(
    reasoner: Reasoner,
    prefix: Prefix,
    null_prefix: Prefix | None,
    shape: tuple[int, int],
    config: SampleConfig,
    generator: torch.Generator,
) -> Float[Tensor, "steps B R N D"]:
    """States of one block of `shape` = (B, R) trajectories at every time of the grid, noise first.

    `prefix` has B rows, shared by the trajectories of a question, or B * R rows, one for each trajectory.
    """
    batch, num_latents = shape
    rows = len(prefix.valid)

    def conditioned_on(prefix: Prefix):
        context = reasoner.context(prefix)

        def velocity(x, t):
            x_rows, t_rows = x.reshape(rows, -1, *x.shape[-2:]), t.reshape(rows, -1)
            return reasoner.velocity(context, x_rows, t_rows).reshape(x.shape)

        return velocity

    velocity = conditioned_on(prefix)
    if null_prefix is not None:
        velocity = with_guidance(velocity, conditioned_on(null_prefix), config.guidance_scale)
    if config.guidance:
        velocity = with_repulsion(velocity, config.guidance, config.bandwidth)
    block = (batch, num_latents, reasoner.config.num_latents, reasoner.config.latent_width)
    device = prefix.valid.device
    x = config.initial_noise * torch.randn(block, generator=generator).to(device)
    times = sampling_grid(config.num_steps, shift=config.time_shift).to(device)
    if config.noise_level:
        return integrate_sde(velocity, x, times, config.noise_level, generator).states
    return integrate_trajectory(velocity, x, times)


@torch.no_grad()
def generate_latents(
    reasoner: Reasoner,
    questions: Sequence[str],
    num_latents: int,
    config: SampleConfig,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B R K steps N D"], Int[Tensor, "B R"], int]:
    """Trajectories of all blocks, the number of real blocks, and the number of tokens the model processed."""
    batch = len(questions)
    ids, valid = reasoner.backbone.tokenize(questions, side="left")
    prefix = reasoner.open((ids, valid))
    null_prefix = None
    if config.guidance_scale != 1:
        null_prefix = reasoner.open((ids, valid), dropped=valid.new_ones(batch))
    running = valid.new_ones(batch * num_latents)
    num_blocks = torch.zeros_like(running, dtype=torch.long)
    states, processed = [], ids.numel() + batch
    for _ in range(reasoner.config.max_blocks):
        path = denoise(reasoner, prefix, null_prefix, (batch, num_latents), config, generator)
        states.append(path)
        processed += config.num_steps * batch * num_latents * (reasoner.config.num_latents + 1)
        num_blocks += running
        if len(states) == reasoner.config.max_blocks:
            break
        z = path[-1].flatten(0, 1)
        if len(states) == 1:
            prefix = _expand(prefix, num_latents)
            null_prefix = _expand(null_prefix, num_latents) if null_prefix is not None else None
        prefix, stop_logit = reasoner.add_block(prefix, z, running)
        if null_prefix is not None:
            null_prefix, _ = reasoner.add_block(null_prefix, z, running)
        processed += int(running.sum()) * (reasoner.config.num_latents + 2)
        running = running & (stop_logit < 0)
        if not bool(running.any()):
            break
    trajectories = torch.stack(states).permute(2, 3, 0, 1, 4, 5)
    return trajectories, num_blocks.view(batch, num_latents), processed


@torch.no_grad()
def answer(
    reasoner: Reasoner,
    questions: Sequence[str],
    latents: Float[Tensor, "B R K N D"],
    num_blocks: Int[Tensor, "B R"],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[list[list[str]], int]:
    """Texts that the LM head writes given each question and its finished blocks, and tokens processed."""
    batch, num_latents, most_blocks = latents.shape[:3]
    prefix = _expand(reasoner.open(reasoner.backbone.tokenize(questions, side="left")), num_latents)
    processed = 0
    for block in range(most_blocks):
        running: Bool[Tensor, " rows"] = (num_blocks > block).flatten()
        prefix, _ = reasoner.add_block(prefix, latents[:, :, block].flatten(0, 1), running)
        processed += int(running.sum()) * (reasoner.config.num_latents + 2)
    texts, decoded = continue_text(
        reasoner.backbone, reasoner.close(prefix), reasoner.config.max_answer_tokens, temperature, generator
    )
    rows = [texts[i * num_latents : (i + 1) * num_latents] for i in range(batch)]
    return rows, processed + decoded + len(texts)


def generate(
    reasoner: Reasoner,
    questions: Sequence[str],
    num_latents: int,
    config: SampleConfig,
    generator: torch.Generator,
    alter: Callable[[Tensor], Tensor] | None = None,
) -> Generation:
    """Draw `num_latents` trajectories for each question and read one text from each.

    `alter`, where given, replaces the finished latents (B, R, K, N, D) before the text is read: the ablations of
    `inference.evaluate` use it.
    """
    trajectories, num_blocks, drawn = generate_latents(reasoner, questions, num_latents, config, generator)
    latents = trajectories[:, :, :, -1]
    seen = latents if alter is None else alter(latents)
    texts, read = answer(reasoner, questions, seen, num_blocks, config.temperature, generator)
    times = sampling_grid(config.num_steps, shift=config.time_shift)
    return Generation(texts, latents, num_blocks, trajectories, times, drawn + read)


def _expand(prefix: Prefix, repeats: int) -> Prefix:
    valid, position, hidden = (x.repeat_interleave(repeats, 0) for x in (prefix.valid, prefix.position, prefix.hidden))
    return Prefix(expand_rows(prefix.past, repeats), valid, position, hidden)
