"""From questions to latent trajectories and texts: the sampling loop of a latent reasoner.

Blocks are drawn one after the other. The first is denoised for all R trajectories of a question on one shared
context; later ones on the context that each trajectory has made for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.draws import Source, child, normal
from ladi.flow.guidance import repulsion_push, with_guidance
from ladi.flow.solver import SdePath, integrate_sde
from ladi.flow.times import sampling_grid
from ladi.models.decoding import Prefix, continue_text, expand

LATENTS, TEXTS = 1, 2
"""Purposes of random numbers: a trajectory may take more blocks, and numbers, in one batch than in another."""


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
    """sigma_0: standard deviation of the latents at t = 1; for DLR's assistant, the scale of its policy's noise."""
    guidance: float = 0.0
    """gamma_max of the repulsion between the trajectories of a question, a rate over time from 1 to 0; 0 means none.
    The papers' gamma, which they add once a step, is this divided by `num_steps`."""
    bandwidth: Literal["median", "median_over_log_n"] = "median"
    """Of the repulsion."""
    guidance_scale: float = 1.0
    """Classifier-free guidance against the dropped question; 1 means none."""
    noise_level: float = 0.0
    """a: noise of the SDE sampler; 0 is the ODE."""
    sde_window: tuple[int, int] | None = None
    """(first, last + 1): only these steps are noisy; None means all but the last step of the grid."""
    time_shift: float = 1.0
    """Above 1 the grid spends more steps near noise."""
    temperature: float = 0.0
    """Of the text; 0 is greedy."""

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.temperature < 0 or self.noise_level < 0 or self.initial_noise < 0:
            raise ValueError(
                "need temperature >= 0, noise_level >= 0 and initial_noise >= 0, got "
                f"{self.temperature}, {self.noise_level} and {self.initial_noise}"
            )

    def times(self) -> Float[Tensor, " steps"]:
        """The grid, noise first."""
        return sampling_grid(self.num_steps, shift=self.time_shift)


@dataclass(frozen=True)
class LatentPaths:
    """Denoising trajectories of B questions, R each, K blocks of S steps.

    `states` hold every block at every time of the grid `times` (1 first), standardised; the last ones are the finished
    blocks. Block k of a trajectory is real where k < `num_blocks`. `means`, `stds` and `pushes` are those of
    `flow.solver.SdePath`: what a policy gradient needs. `tokens_processed` counts positions of all passes, padding and
    trajectories that have finished included.
    """

    means: Float[Tensor, "B R K S N D"]
    states: Float[Tensor, "B R K S+1 N D"]
    stds: Float[Tensor, " S"]
    pushes: Float[Tensor, "B R K S N D"] | None
    num_blocks: Int[Tensor, "B R"]
    times: Float[Tensor, " S+1"]
    tokens_processed: int

    @property
    def latents(self) -> Float[Tensor, "B R K N D"]:
        """The finished blocks."""
        return self.states[:, :, :, -1]


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
    running: Bool[Tensor, "B R"],
    config: SampleConfig,
    generator: Source,
) -> SdePath:
    """The path of one block of B x R trajectories along the grid, noise first.

    `prefix` has B rows, shared by the trajectories of a question, or B * R rows, one for each trajectory. Trajectories
    that are not `running` have finished: their block is padding, and repels no other.
    """
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
    push = repulsion_push(config.guidance, config.bandwidth, running) if config.guidance else None
    block = (*running.shape, reasoner.config.num_latents, reasoner.config.latent_width)
    x = config.initial_noise * normal(block, generator).to(prefix.valid.device)
    return integrate_sde(velocity, x, config.times(), config.noise_level, generator, push, config.sde_window)


@torch.no_grad()
def generate_latents(
    reasoner: Reasoner,
    questions: Sequence[str],
    num_latents: int,
    config: SampleConfig,
    generator: Source,
) -> LatentPaths:
    """Trajectories of all blocks: `num_latents` for each question.

    Raises:
        ValueError: if `num_latents` is less than 1.
    """
    if num_latents < 1:
        raise ValueError(f"num_latents must be at least 1, got {num_latents}")
    batch = len(questions)
    ids, valid = reasoner.backbone.tokenize(questions, opening=True)
    prefix = reasoner.open((ids, valid))
    null_prefix = None
    if config.guidance_scale != 1:
        null_prefix = reasoner.open((ids, valid), dropped=valid.new_ones(batch))
    running = valid.new_ones(batch * num_latents)
    num_blocks = torch.zeros_like(running, dtype=torch.long)
    paths, processed = [], ids.numel() + batch
    for _ in range(reasoner.config.max_blocks):
        paths.append(denoise(reasoner, prefix, null_prefix, running.view(batch, num_latents), config, generator))
        processed += config.num_steps * len(running) * (reasoner.config.num_latents + 1)
        num_blocks += running
        if len(paths) == reasoner.config.max_blocks:
            break
        z = paths[-1].states[-1].flatten(0, 1)
        if len(paths) == 1:
            prefix = expand(prefix, num_latents)
            null_prefix = expand(null_prefix, num_latents) if null_prefix is not None else None
        prefix, stop_logit = reasoner.add_block(prefix, z, running)
        if null_prefix is not None:
            null_prefix, _ = reasoner.add_block(null_prefix, z, running)
        processed += len(running) * (reasoner.config.num_latents + 2)
        running = running & (stop_logit < 0)
        if not bool(running.any()):
            break

    def stacked(parts: list[Tensor]) -> Tensor:  # K x (S, B, R, N, D) -> (B, R, K, S, N, D)
        return torch.stack(parts).permute(2, 3, 0, 1, 4, 5)

    pushes = [path.pushes for path in paths if path.pushes is not None]
    return LatentPaths(
        states=stacked([path.states for path in paths]),
        means=stacked([path.means for path in paths]),
        stds=paths[0].stds.flatten(1)[:, 0],
        pushes=stacked(pushes) if pushes else None,
        num_blocks=num_blocks.view(batch, num_latents),
        times=config.times(),
        tokens_processed=processed if null_prefix is None else 2 * processed,  # all of it once more for the null
    )


def finished_prefix(
    reasoner: Reasoner, questions: Sequence[str], latents: Float[Tensor, "B R K N D"], num_blocks: Int[Tensor, "B R"]
) -> tuple[Prefix, int]:
    """The prefix of B * R rows after which the answer comes: question and finished blocks; and tokens processed."""
    num_latents, most_blocks = latents.shape[1:3]
    opened = reasoner.open(reasoner.backbone.tokenize(questions, opening=True))
    prefix, processed = expand(opened, num_latents), opened.valid.numel()
    for block in range(most_blocks):
        running: Bool[Tensor, " rows"] = (num_blocks > block).flatten()
        prefix, _ = reasoner.add_block(prefix, latents[:, :, block].flatten(0, 1), running)
        processed += len(running) * (reasoner.config.num_latents + 2)
    return reasoner.close(prefix), processed + len(prefix.valid)


@torch.no_grad()
def answer(
    reasoner: Reasoner,
    questions: Sequence[str],
    latents: Float[Tensor, "B R K N D"],
    num_blocks: Int[Tensor, "B R"],
    temperature: float = 0.0,
    generator: Source | None = None,
    texts_per_latent: int = 1,
) -> tuple[list[list[str]], int]:
    """Texts that the LM head writes given each question and its finished blocks, and tokens processed.

    A row holds the R * `texts_per_latent` texts of a question, those of one latent together.
    """
    batch, group = latents.shape[0], latents.shape[1] * texts_per_latent
    prefix, processed = finished_prefix(reasoner, questions, latents, num_blocks)
    length = reasoner.config.max_answer_tokens
    texts, decoded = continue_text(reasoner.backbone, prefix, length, temperature, generator, texts_per_latent)
    return [texts[i * group : (i + 1) * group] for i in range(batch)], processed + decoded


def generate(
    reasoner: Reasoner,
    questions: Sequence[str],
    num_latents: int,
    config: SampleConfig,
    generator: Source,
) -> Generation:
    """Draw `num_latents` trajectories for each question and read one text from each."""
    paths = generate_latents(reasoner, questions, num_latents, config, child(generator, LATENTS))
    of_texts = child(generator, TEXTS)
    texts, read = answer(reasoner, questions, paths.latents, paths.num_blocks, config.temperature, of_texts)
    processed = paths.tokens_processed + read
    return Generation(texts, paths.latents, paths.num_blocks, paths.states, paths.times, processed)
