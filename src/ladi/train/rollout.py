"""Stage 2 (rollout): the reasoner makes its own blocks in training; the answer loss reaches them through denoising.

Each block is denoised in a few steps from a start time drawn per row. At start time 1 it comes from pure noise, as in
the paper; below 1 it starts from the oracle block mixed with noise, so that the self-made block still carries the line
of thought that the answer belongs to, with the errors that denoising makes.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ladi.arrays import Bool, Float, Tensor
from ladi.flow.path import mix
from ladi.flow.solver import Velocity, euler_step
from ladi.models.backbone import compute_again
from ladi.models.decoding import Prefix, append
from ladi.models.reasoner import Context, LatentReasoner
from ladi.train import loop
from ladi.train.data import DataConfig, ValidationConfig, begin
from ladi.train.reasoner import Batch, LossConfig, answer_loss, draw_rows, flow_loss, stop_loss, total, train


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How blocks are made during training."""

    num_steps: int = 10
    """Denoising steps of each block."""
    start_time: tuple[float, float] = (1.0, 1.0)
    """Range of the uniform start time; (1, 1) is the paper's rollout from pure noise."""
    denoising_gradient: bool = True
    """Let the answer loss reach the denoising steps; off, only the reading of self-made blocks is trained."""

    def __post_init__(self):
        low, high = self.start_time
        if not 0 < low <= high <= 1:
            raise ValueError(f"start_time must satisfy 0 < low <= high <= 1, got {self.start_time}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `rollout`."""

    out_dir: Path
    data: DataConfig
    reasoner_dir: Path
    """Saved reasoner of stage 1."""
    vae_dir: Path
    """The VAE of its latents."""
    latents_path: Path
    """Where the latents of the training set are cached."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    loop: loop.LoopConfig


def denoise_block(
    velocity: Velocity, x0: Float[Tensor, "B N D"], config: RolloutConfig, generator: torch.Generator
) -> Float[Tensor, "B N D"]:
    """A self-made block: Euler steps from mix(x0, noise, start) to t = 0; activations are recomputed in backward."""
    low, high = config.start_time
    start = (low + (high - low) * torch.rand(len(x0), generator=generator)).to(x0.device)
    x = mix(x0, torch.randn(x0.shape, generator=generator).to(x0.device), start)

    def recomputed(x, t):
        return compute_again(velocity, x, t) if torch.is_grad_enabled() else velocity(x, t)

    for i in range(config.num_steps):
        t, t_next = (start * (1 - k / config.num_steps) for k in (i, i + 1))
        x = euler_step(recomputed, x, t, t_next)
    return x


def loss(
    reasoner: LatentReasoner,
    batch: Batch,
    generator: torch.Generator,
    config: LossConfig,
    rollout: RolloutConfig,
):
    """L of stage 2: flow loss of oracle blocks in self-made context, answer and stop losses after self-made blocks."""
    prefix = reasoner.open(batch.question, draw_rows(config.drop_question, batch, generator))
    flow, stop_logits = [], []
    for block in range(batch.block_valid.shape[1]):
        context, running = reasoner.context(prefix), batch.block_valid[:, block]
        this = slice(block, block + 1)
        oracle = Batch(batch.question, batch.answer, batch.target[:, this], batch.context[:, this], running[:, None])
        flow.append(flow_loss(reasoner, context, oracle, config, generator) * running.sum())
        with torch.set_grad_enabled(torch.is_grad_enabled() and rollout.denoising_gradient):
            z = denoise_block(velocity_in(reasoner, context), batch.target[:, block], rollout, generator)
        prefix, logit = reasoner.add_block(prefix, z, running)
        stop_logits.append(logit)
    if config.hide_question:
        prefix = hide_question(prefix, batch, draw_rows(config.hide_question, batch, generator))
    num_blocks = batch.block_valid.sum() if batch.num_blocks is None else batch.num_blocks
    return total(
        {
            "loss/flow": torch.stack(flow).sum() / num_blocks,
            "loss/answer": answer_loss(answer_logits(reasoner, prefix, batch), batch),
            "loss/stop": stop_loss(torch.stack(stop_logits, dim=1), batch),
        },
        config,
    )


def velocity_in(reasoner: LatentReasoner, context: Context) -> Velocity:
    """The reasoner's velocity of one block per row, in a context."""
    return lambda x, t: reasoner.velocity(context, x[:, None], t[:, None])[:, 0]


def hide_question(prefix: Prefix, batch: Batch, rows: Bool[Tensor, " B"]) -> Prefix:
    """The prefix with the question's tokens hidden, in some rows, from all that comes after."""
    valid = prefix.valid.clone()
    valid[:, : batch.question[0].shape[1]] &= ~rows[:, None]
    return Prefix(prefix.past, valid, prefix.position, prefix.hidden)


def answer_logits(reasoner: LatentReasoner, prefix: Prefix, batch: Batch) -> Float[Tensor, "B A V"]:
    """Teacher-forced logits of the answer after a rolled-out prefix."""
    closed = reasoner.close(prefix)
    ids, valid = batch.answer
    _, hidden = append(reasoner.backbone, closed, reasoner.backbone.embed(ids[:, :-1]), valid[:, :-1])
    return reasoner.backbone.logits(torch.cat([closed.hidden[:, None], hidden], dim=1))


def main(config: Config) -> Path:
    """Train and save `final/`, VAE included; returns its path."""
    run_dir = begin(config)
    reasoner = LatentReasoner.from_pretrained(config.reasoner_dir).train()
    return train(
        config,
        run_dir,
        reasoner,
        lambda model, batch, generator: loss(model, batch, generator, config.loss, config.rollout),
        label="rollout",
        by_layer=False,  # processes see different numbers of blocks
    )
