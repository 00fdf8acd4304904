"""Stage A: train the thought VAE on single blocks, then store the statistics of its latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from ladi.arrays import Tensor
from ladi.inference.text import blocks_of
from ladi.losses import gaussian_kl_to_standard
from ladi.models.backbone import Backbone
from ladi.models.vae import BlockTokens, Posterior, ThoughtVAE, ThoughtVAEConfig
from ladi.rundir import write_json_atomic
from ladi.tasks import TaskConfig
from ladi.tasks.base import Problem
from ladi.tasks.blocks import Block
from ladi.train import loop
from ladi.train.data import (
    TOLERATED,
    DataConfig,
    Examples,
    ProblemBatches,
    Some,
    ValidationConfig,
    begin,
    check_lengths,
    num_tokens,
    pass_size,
)

GATE = 0.99
"""Share of held-out blocks that a VAE should give back exactly from their posterior mean."""
LEVELS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Of the noise that the reconstruction report adds to latents."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `vae`."""

    out_dir: Path
    data: DataConfig
    backbone_dir: Path
    """Saved language model that encoder and decoder start from."""
    vae: ThoughtVAEConfig = field(default_factory=ThoughtVAEConfig)
    beta_warmup_steps: int = 0
    """Steps over which beta rises from 0. A decoder that reads the context may else learn to do without latents."""
    context_warmup_steps: int = 0
    """Steps over which the share of blocks whose decoder does not see the context falls from 1 to 0: it learns to read
    latents first. Without, it may take long to find out that they tell what the context leaves open."""
    statistics_problems: int = 4096
    """Training problems over which the latents' mean and standard deviation are taken, at most all."""
    gate_problems: int = 1000
    """Problems of the reconstruction report, of the split `validation` (`test` where there is none), at most all."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: loop.LoopConfig

    def __post_init__(self):
        loop.at_least(0, self, "beta_warmup_steps", "context_warmup_steps")
        if self.context_warmup_steps and not self.vae.reads_context:
            raise ValueError(
                f"context_warmup_steps is {self.context_warmup_steps}, but this VAE reads no context; "
                "set vae.reads_context, or context_warmup_steps 0"
            )


@dataclass(frozen=True)
class Batch:
    """Blocks, the share of beta that weighs their KL term, the share whose decoder does not see what stands before, and
    what sums over blocks are divided by.
    """

    tokens: BlockTokens
    beta_share: float
    hidden_share: float
    num_blocks: float


def risen(step: int, warmup_steps: int) -> float:
    """Rises from 0 at the first step to 1 after `warmup_steps`; 1 throughout where there are none."""
    return step / warmup_steps if step < warmup_steps else 1.0


def loss(vae: ThoughtVAE, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The VAE's loss on the blocks of a batch."""
    return vae.loss(batch.tokens, generator, batch.beta_share, batch.hidden_share, batch.num_blocks)


def encoded(vae: ThoughtVAE, blocks: list[Block]) -> Posterior:
    """Posteriors of any number of blocks, in passes that suit the device."""
    at_once = pass_size()
    parts = [vae.encode(vae.tokenize(blocks[i : i + at_once])) for i in range(0, len(blocks), at_once)]
    return Posterior(*(torch.cat(each) for each in zip(*parts, strict=True)))


@torch.no_grad()
def store_statistics(vae: ThoughtVAE, blocks: list[Block], generator: torch.Generator) -> None:
    """Set `latent_mean` and `latent_std` to those of posterior samples, per latent and channel."""
    z = encoded(vae, blocks).sample(generator)
    vae.latent_mean.copy_(z.mean(0))
    vae.latent_std.copy_(z.std(0))


@torch.no_grad()
def reconstruction(
    vae: ThoughtVAE, blocks: list[Block], generator: torch.Generator, noise_levels: tuple[float, ...]
) -> dict[str, float]:
    """Share of blocks decoded exactly: from the posterior mean, from a sample, and against added latent noise.

    Noise is in units of each channel's standard deviation, added to the mean.
    """
    posterior, at_once = encoded(vae, blocks), pass_size()

    def exact(z: Tensor) -> float:
        right = 0
        for i in range(0, len(blocks), at_once):
            some = blocks[i : i + at_once]
            texts = vae.decode(z[i : i + at_once], [block.before for block in some])
            right += sum(text == block.text for text, block in zip(texts, some, strict=True))
        return right / len(blocks)

    result = {"vae/exact_mean": exact(posterior.mean), "vae/exact_sample": exact(posterior.sample(generator))}
    for level in noise_levels:
        eta = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean.device)
        result[f"vae/exact_noise_{level}"] = exact(posterior.mean + level * vae.latent_std * eta)
    return result | {"vae/kl": gaussian_kl_to_standard(posterior.mean, posterior.log_var).mean().item()}


def said(report: dict[str, float], num_blocks: int, config: Config) -> str:
    """The reconstruction report in a line, and below the gate what to do about it."""
    mean, sample, kl = (report[f"vae/{name}"] for name in ("exact_mean", "exact_sample", "kl"))
    found = (
        f"{100 * mean:.1f} % of {num_blocks:,} held-out blocks come back exactly from the mean of their latents, "
        f"{100 * sample:.1f} % from a sample, at {kl:.1f} nats a block"
    )
    if mean >= GATE:
        return found
    remedies = ["train longer (--loop.steps)", "give latents more room (--vae.num-latents, --vae.beta)"]
    if config.vae.reads_context and not config.context_warmup_steps:
        remedies.append("let the decoder start without the context (--context-warmup-steps)")
    return f"{found}; a reasoner should have {100 * GATE:.0f} %: {', or '.join(remedies)}"


def all_blocks(problems: Sequence[Problem], task: TaskConfig, block: str) -> list[Block]:
    """The blocks of all problems, one after the other."""
    return [b for problem in problems for b in blocks_of(problem, block, task.step_separator)]


def first_problems(task: TaskConfig, split: str, count: int) -> list[Problem]:
    """The first `count` problems of a split, or all if there are fewer."""
    available = task.num_problems(split)
    return [task.problem(split, i) for i in range(count if available is None else min(count, available))]


def batches_of(vae: ThoughtVAE, config: Config, examples: Examples) -> ProblemBatches:
    """All blocks of some problems."""
    task, block = config.data.task, config.vae.block

    def make(some: Some) -> Batch:
        tokens = vae.tokenize(all_blocks(some.problems, task, block))
        beta_share = risen(some.step, config.beta_warmup_steps)
        hidden_share = 1 - risen(some.step, config.context_warmup_steps)
        return Batch(tokens, beta_share, hidden_share, *some.counts)

    return ProblemBatches(examples, make, lambda problems, _: [len(all_blocks(problems, task, block))])


def main(config: Config) -> Path:
    """Train, store latent statistics, report reconstruction; save `final/` and return its path.

    Raises:
        ValueError: before training, if more than one block in twenty has more than `vae.max_block_tokens` tokens
            and would always be cut.
    """
    run_dir = begin(config)
    task, block = config.data.task, config.vae.block
    vae = ThoughtVAE.from_backbone(config.vae, Backbone.from_pretrained(config.backbone_dir), config.loop.seed)
    texts = [b.text for b in all_blocks(config.data.sample(), task, block)]
    lengths, most = num_tokens(vae.decoder, texts), config.vae.max_block_tokens
    check_lengths("blocks", texts, lengths, "tokens", most, "--vae.max-block-tokens", TOLERATED)

    examples = config.data.examples(config.loop.batch_size, config.loop.seed)
    batches = partial(batches_of, vae, config)
    validation = config.validation.of(task, batches)
    vae = loop.run(config.loop, run_dir, vae, batches(examples), loss, label="vae", validation=validation).eval()
    generator = loop.step_generator(config.loop.seed, config.loop.steps)
    num_statistics = min(config.statistics_problems, config.data.size)
    store_statistics(vae, all_blocks(examples.problems(0, 0, num_statistics), task, block), generator)
    split = "validation" if "validation" in task.splits else "test"
    saved = loop.save_final(vae, run_dir)
    held_out = all_blocks(first_problems(task, split, config.gate_problems), task, block)
    if held_out and loop.is_main_process():
        report = reconstruction(vae, held_out, generator, LEVELS)
        write_json_atomic(run_dir / "reconstruction.json", report)
        print(said(report, len(held_out), config), flush=True)
    return saved
