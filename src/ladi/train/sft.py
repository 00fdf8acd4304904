"""Supervised fine-tuning of the token-level model: question -> chain of thought and answer, one token after another.

The result is the autoregressive baseline, and the language model that the VAE and the reasoner start from.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from ladi.arrays import Float, Tensor
from ladi.inference.text import alphabet, sft_target
from ladi.losses import token_cross_entropy
from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.decoding import append
from ladi.tasks import TaskConfig
from ladi.train import loop
from ladi.train.data import (
    DataConfig,
    Examples,
    ProblemBatches,
    Some,
    Tokens,
    ValidationConfig,
    begin,
    count_tokens,
    tokenize_pairs,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `sft`."""

    out_dir: Path
    data: DataConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora_rank: int = 0
    """Above 0, train LoRA of this rank instead of all weights."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: loop.LoopConfig


def answer_logits(backbone: Backbone, question: Tokens, answer: Tokens) -> Float[Tensor, "B A V"]:
    """Teacher-forced logits of the answer tokens in `question <soa> answer <eos>`."""
    (question_ids, question_valid), (answer_ids, answer_valid) = question, answer
    soa = torch.full_like(question_ids[:, :1], backbone.soa)
    ids = torch.cat([question_ids, soa, answer_ids[:, :-1]], dim=1)
    valid = torch.cat([question_valid, answer_valid.new_ones(len(ids), 1), answer_valid[:, :-1]], dim=1)
    _, hidden = append(backbone, None, backbone.embed(ids), valid)
    return backbone.logits(hidden[:, question_ids.shape[1] :])


@dataclass(frozen=True)
class Batch:
    """Questions, texts to write, and what their tokens are divided by; by default, how many there are."""

    question: Tokens
    answer: Tokens
    num_tokens: float | None = None


def loss(backbone: Backbone, batch: Batch, generator: torch.Generator):
    """Cross-entropy of the target text, mean over tokens, and the share of targets predicted exactly."""
    answer = batch.answer
    logits = answer_logits(backbone, batch.question, answer)
    exact = ((logits.argmax(-1) == answer[0]) | ~answer[1]).all(1).float().mean()
    ce = token_cross_entropy(logits, *answer, reduction="token_mean", count=batch.num_tokens)
    return ce, {"loss/answer": ce.detach(), "sft/exact_teacher_forced": exact}


def batches_of(backbone: Backbone, task: TaskConfig, examples: Examples) -> ProblemBatches:
    """Questions and texts to write."""

    def make(some: Some) -> Batch:
        questions, targets = [p.question for p in some.problems], [sft_target(p, task) for p in some.problems]
        return Batch(*tokenize_pairs(backbone, questions, targets), *some.counts)

    return ProblemBatches(examples, make, lambda ps, _: [count_tokens(backbone, [sft_target(p, task) for p in ps])])


def main(config: Config) -> Path:
    """Train and save `final/`; returns its path."""
    run_dir = begin(config)
    backbone = Backbone.from_config(config.backbone, alphabet(config.data.task))
    if config.lora_rank:
        backbone.add_lora(config.lora_rank, config.loop.seed)
    batches = partial(batches_of, backbone, config.data.task)
    backbone = loop.run(
        config.loop,
        run_dir,
        backbone,
        batches(config.data.examples(config.loop.batch_size, config.loop.seed)),
        loss,
        label="sft",
        validation=config.validation.of(config.data.task, batches),
    )
    return loop.save_final(backbone, run_dir)
