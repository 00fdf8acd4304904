"""Warm start of DLR: the assistant's latent means make the frozen main model's worked solution likely.

The paper is silent on how a projection into an untouched language model begins; here by maximum likelihood of the
worked solution under the main model, with gradients through its frozen layers into projection and assistant.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ladi.arrays import Float, Tensor
from ladi.inference.text import alphabet, sft_target
from ladi.losses import token_cross_entropy
from ladi.models.assistant import AssistantConfig, LatentAssistant, load_main
from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.decoding import append
from ladi.rundir import open_run
from ladi.train import loop
from ladi.train.data import DataConfig, Tokens


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `dlr-warmup`."""

    out_dir: Path
    data: DataConfig
    main: str
    """Folder or hub name of the main model, which stays frozen; assets/... names one that came with ladi."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Of the assistant: a pretrained one (`name_or_path`), or a new one of the given size."""
    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    noise: float = 0.0
    """Multiplies the policy's noise in the latents that are trained on; 0 takes their means."""
    loop: loop.LoopConfig


@dataclass(frozen=True)
class Batch:
    """Questions and worked solutions, as the main model's tokens."""

    questions: list[str]
    solution: Tokens


def solution_logits(
    assistant: LatentAssistant, batch: Batch, latents: Float[Tensor, "B T D"]
) -> Float[Tensor, "B A V"]:
    """The main model's teacher-forced logits of the solution after each question's own latents."""
    ids, valid = batch.solution
    prefix, _ = assistant.main_prefix(batch.questions, latents[:, None])
    _, hidden = append(assistant.main, prefix, assistant.main.embed(ids[:, :-1]), valid[:, :-1])
    return assistant.main.logits(torch.cat([prefix.hidden[:, None], hidden], dim=1))


def loss(assistant: LatentAssistant, batch: Batch, generator: torch.Generator, noise_scale: float):
    """Cross-entropy of the solution, mean over tokens, and the share of solutions predicted exactly."""
    config = assistant.config
    shape = (len(batch.questions), config.num_latents, config.latent_width)
    noise = noise_scale * torch.randn(shape, generator=generator).to(assistant.main.device)
    latents = assistant.policy.sample(assistant.policy.open(batch.questions), noise)
    logits = solution_logits(assistant, batch, latents)
    ids, valid = batch.solution
    exact = ((logits.argmax(-1) == ids) | ~valid).all(1).float().mean()
    ce = token_cross_entropy(logits, ids, valid, reduction="token_mean")
    return ce, {"loss/answer": ce.detach(), "sft/exact_teacher_forced": exact}


def main(config: Config) -> Path:
    """Train and save `final/` (assistant and projection); returns its path."""
    config.data.check()
    run_dir = open_run(config.out_dir, config)
    task, batch_size = config.data.task, config.loop.batch_size
    assistant = LatentAssistant.from_backbones(
        config.assistant,
        Backbone.from_config(config.backbone, alphabet(task)),
        load_main(config.main),
        config.main,
        config.loop.seed,
    )

    def batch_at(step: int, start: int, stop: int) -> Batch:
        problems = config.data.problems(step, batch_size, start, stop)
        targets = [sft_target(problem, task) for problem in problems]
        return Batch([problem.question for problem in problems], assistant.main.tokenize(targets, add_eos=True))

    assistant = loop.run(
        config.loop,
        run_dir,
        assistant,
        batch_at,
        lambda model, batch, generator: loss(model, batch, generator, config.noise),
        label="dlr-warmup",
    )
    return loop.save_final(assistant, run_dir)
