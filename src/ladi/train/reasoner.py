"""Stage 1 (teacher forcing): velocities of each block given the VAE's earlier blocks, the stop head and the answer.

L = flow_weight L_FM + answer_weight L_answer + stop_weight L_stop        (LaDiR, section 3.3)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.bundled import located
from ladi.flow.path import mix, velocity_target
from ladi.flow.times import draw_times
from ladi.inference.text import blocks_of
from ladi.losses import masked_mean, token_cross_entropy, velocity_mse
from ladi.models.backbone import Backbone
from ladi.models.reasoner import LatentReasoner, ReasonerConfig
from ladi.models.vae import LatentScale, ThoughtVAEConfig, read_config
from ladi.tasks.base import Problem
from ladi.train import loop
from ladi.train.data import (
    TOLERATED,
    DataConfig,
    EncodedBlocks,
    Examples,
    LatentCache,
    ProblemBatches,
    Some,
    Tokens,
    ValidationConfig,
    begin,
    check_lengths,
    count_tokens,
    num_tokens,
    precompute_latents,
    tokenize_pairs,
    with_latents,
)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and noise of the reasoner's loss, shared by stages 1 and 2."""

    flow_weight: float = 5.0
    answer_weight: float = 1.0
    stop_weight: float = 1.0
    noise_draws: int = 4
    """R: noisy copies of each block that share one context."""
    times: Literal["uniform", "logit_normal"] = "logit_normal"
    times_mean: float = 0.0
    times_std: float = 1.0
    target: Literal["mean", "sample"] = "mean"
    """x0 of the flow: the posterior's mean, or a draw from it. Clean context blocks are always draws."""
    drop_question: float = 0.1
    """Probability that a row's question is replaced by the learned null (for classifier-free guidance)."""
    hide_question: float = 0.0
    """Probability that a row's answer is written without seeing the question."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `reasoner`."""

    out_dir: Path
    data: DataConfig
    vae_dir: Path
    backbone_dir: Path
    """Saved language model that the reasoner starts from."""
    lora_rank: int = 0
    """Above 0, train LoRA of this rank instead of all weights of the language model; the heads train in full."""
    latents_path: Path
    """Where the latents of the training set are cached."""
    max_blocks: int = 2
    max_answer_tokens: int = 64
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    loop: loop.LoopConfig


@dataclass(frozen=True)
class Batch:
    """Questions, answers and standardised latents of B problems.

    Sums over answers' tokens and over blocks are divided by `num_tokens` and `num_blocks`; by default, as many as there
    are.
    """

    question: Tokens
    answer: Tokens
    target: Float[Tensor, "B K N D"]
    context: Float[Tensor, "B K N D"]
    block_valid: Bool[Tensor, "B K"]
    num_tokens: float | None = None
    num_blocks: float | None = None


def make_batch(
    scale: LatentScale,
    encoded: EncodedBlocks,
    tokens: tuple[Tokens, Tokens],
    target: str,
    generator: torch.Generator,
    counts: Sequence[float | None] = (None, None),
) -> Batch:
    """Standardised flow targets and clean context blocks from posteriors; `counts` of tokens and of blocks."""
    sample = scale.standardise(encoded.sample(generator))
    x0 = sample if target == "sample" else scale.standardise(encoded.mean)
    num_tokens, num_blocks = counts
    return Batch(
        *tokens,
        target=x0,
        context=sample,
        block_valid=encoded.valid,
        num_tokens=num_tokens,
        num_blocks=num_blocks,
    )


def flow_loss(reasoner: LatentReasoner, blocks, batch: Batch, config: LossConfig, generator: torch.Generator) -> Tensor:
    """L_FM over R noise draws of every block: mean over latents and channels, then over real blocks and draws."""
    x0 = batch.target.repeat_interleave(config.noise_draws, dim=1)  # (B, K * R, N, D)
    t = draw_times(
        x0.shape[:2],
        generator,
        distribution=config.times,
        mean=config.times_mean,
        std=config.times_std,
        device=x0.device,
    )
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    v = reasoner.velocity(blocks.repeat(config.noise_draws), mix(x0, noise, t), t)
    mask = batch.block_valid.repeat_interleave(config.noise_draws, 1)
    count = None if batch.num_blocks is None else batch.num_blocks * config.noise_draws
    return velocity_mse(v, velocity_target(x0, noise), mask, count)


def stop_loss(logits: Float[Tensor, "B K"], batch: Batch) -> Tensor:
    """Binary cross-entropy at each `<eot>`: 1 after a row's last block; mean over real blocks."""
    valid = batch.block_valid
    last = torch.cat([valid[:, 1:], torch.zeros_like(valid[:, :1])], 1).logical_not()
    entropy = binary_cross_entropy_with_logits(logits, last.float(), reduction="none")
    return masked_mean(entropy, valid, batch.num_blocks)


def answer_loss(logits: Float[Tensor, "B A V"], batch: Batch) -> Tensor:
    """Cross-entropy of the answers, mean over tokens."""
    return token_cross_entropy(logits, *batch.answer, reduction="token_mean", count=batch.num_tokens)


def draw_rows(probability: float, batch: Batch, generator: torch.Generator) -> Bool[Tensor, " B"]:
    """Each row with the given probability."""
    return (torch.rand(len(batch.target), generator=generator) < probability).to(batch.target.device)


def total(terms: dict[str, Tensor], config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the terms `loss/flow`, `loss/answer`, `loss/stop`, and the terms for the log."""
    weights = {
        "loss/flow": config.flow_weight,
        "loss/answer": config.answer_weight,
        "loss/stop": config.stop_weight,
    }
    return sum((weights[name] * term for name, term in terms.items()), torch.zeros(())), terms


def loss(reasoner: LatentReasoner, batch: Batch, generator: torch.Generator, config: LossConfig):
    """L of stage 1 and its three terms."""
    clean = reasoner.read(
        batch.question,
        batch.context,
        batch.block_valid,
        batch.answer,
        dropped=draw_rows(config.drop_question, batch, generator),
        hidden_from_answer=draw_rows(config.hide_question, batch, generator) if config.hide_question else None,
    )
    return total(
        {
            "loss/flow": flow_loss(reasoner, clean.blocks, batch, config, generator),
            "loss/answer": answer_loss(clean.answer_logits, batch),
            "loss/stop": stop_loss(clean.stop_logits, batch),
        },
        config,
    )


def batches_of(reasoner: LatentReasoner, config, examples: Examples, latents: LatentCache) -> ProblemBatches:
    """Problems and the latents that are kept of them, for stages 1 and 2."""
    backbone, scale = reasoner.backbone, LatentScale.from_pretrained(config.vae_dir)

    def count(problems: Sequence[Problem], indices: Int[Tensor, " B"]) -> list[int]:
        """Tokens of the answers, and blocks."""
        return [count_tokens(backbone, [p.answer for p in problems]), int(latents.num_blocks[indices].sum())]

    def make(some: Some) -> Batch:
        return make_batch(
            scale,
            latents.rows(some.indices, backbone.device),
            tokenize_pairs(backbone, [p.question for p in some.problems], [p.answer for p in some.problems]),
            config.loss.target,
            loop.step_generator(config.loop.seed, some.noise_step, 10_000 + some.start),
            some.counts,
        )

    return ProblemBatches(examples, make, count)


def train(config, run_dir: Path, reasoner: LatentReasoner, loss: loop.Loss, **settings: Any) -> Path:
    """Run stage 1 or 2 on the latents of its problems and save `final/`; returns its path."""
    task, most = config.data.task, reasoner.config.max_blocks
    with loop.main_process_first():
        latents = precompute_latents(config.vae_dir, config.data, config.latents_path, most)
    reasoner = loop.run(
        config.loop,
        run_dir,
        reasoner,
        batches_of(reasoner, config, config.data.examples(config.loop.batch_size, config.loop.seed), latents),
        loss,
        validation=config.validation.of(
            task, lambda examples: batches_of(reasoner, config, *with_latents(examples, task, config.vae_dir, most))
        ),
        **settings,
    )
    return loop.save_final(reasoner, run_dir)


def check_problems(config: Config, block: str, backbone: Backbone) -> None:
    """Raise if training problems have more blocks or longer answers than the reasoner will ever write.

    Raises:
        ValueError: if some have; says how many.
    """
    problems, separator = config.data.sample(), config.data.task.step_separator
    questions, answers = [p.question for p in problems], [p.answer for p in problems]
    counts = [len(blocks_of(problem, block, separator)) for problem in problems]
    check_lengths("training problems", questions, counts, "blocks", config.max_blocks, "--max-blocks")
    lengths = num_tokens(backbone, answers)
    most = config.max_answer_tokens
    check_lengths("answers", answers, lengths, "tokens", most, "--max-answer-tokens", TOLERATED)


def main(config: Config) -> Path:
    """Train and save `final/`, VAE included; returns its path."""
    run_dir = begin(config)
    vae_dir = Path(located(config.vae_dir))
    vae = ThoughtVAEConfig(**read_config(vae_dir, "ThoughtVAE"))
    shape = ReasonerConfig(
        num_latents=vae.num_latents,
        latent_width=vae.latent_width,
        max_blocks=config.max_blocks,
        max_answer_tokens=config.max_answer_tokens,
    )
    backbone = Backbone.from_pretrained(config.backbone_dir)
    check_problems(config, vae.block, backbone)
    if config.lora_rank:
        backbone.add_lora(config.lora_rank, config.loop.seed)
    reasoner = LatentReasoner.from_backbone(shape, backbone, vae_dir, config.loop.seed)
    return train(
        config,
        run_dir,
        reasoner,
        lambda model, batch, generator: loss(model, batch, generator, config.loss),
        label="reasoner",
    )
