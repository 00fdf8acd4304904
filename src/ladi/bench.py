"""Throughput of the shared-context primitive against separate forwards, and the share of the machine's matmul rate."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from ladi.devices import default_device, synchronize
from ladi.inference.text import alphabet
from ladi.models.backbone import Backbone
from ladi.models.reasoner import Context, LatentReasoner, ReasonerConfig
from ladi.rundir import provenance, write_json_atomic
from ladi.train.pipeline import Pipeline
from ladi.train.presets import preset_named
from ladi.train.reasoner import Batch, loss


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is timed."""

    preset: str = "cd3_tiny"
    copies: int = 16
    """R: noisy copies that share one context."""
    batch_size: int = 64
    question_tokens: int = 0
    """Length of made-up questions, for which no data is read; 0 takes the task's questions and answers."""
    answer_tokens: int = 0
    """Length of made-up answers."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast, as in training."""
    repeats: int = 7
    """Timed runs of each; the median is reported."""
    json: str = ""
    """File for the numbers; empty prints the table only."""

    def __post_init__(self):
        if (self.question_tokens > 0) != (self.answer_tokens > 0):
            raise ValueError(
                f"question_tokens ({self.question_tokens}) and answer_tokens ({self.answer_tokens}) go together; "
                "set both"
            )


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of `run`, seconds, after one warm-up."""
    run()
    synchronize()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_rate(repeats: int, size: int = 1536) -> float:
    """Measured matrix-product rate of the machine, FLOP/s; under autocast in its type."""
    a = torch.randn(size, size, device=default_device())
    return 2 * size**3 / median_s(lambda: a @ a, repeats)


def main(config: Config, console: Console) -> dict[str, float]:
    """Time training and sampling of an untrained reasoner of the preset's size, on the accelerator where there is one;
    print and return the numbers.

    Raises:
        ValueError: if the preset is unknown.
    """
    pipeline, device = preset_named(config.preset)(Path("unused")), default_device()
    vae = pipeline.vae.vae
    letters = "1" if config.question_tokens else alphabet(pipeline.sft.data.task)
    backbone = Backbone.untrained(pipeline.sft.backbone, letters)
    shape = ReasonerConfig(
        num_latents=vae.num_latents, latent_width=vae.latent_width, max_blocks=pipeline.reasoner.max_blocks
    )
    reasoner = LatentReasoner.from_backbone(shape, backbone, None).to(device)
    batch = random_batch(reasoner, pipeline, config)
    generator = torch.Generator().manual_seed(0)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")

    @autocast
    def velocities(packed: bool, backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            x = torch.randn(config.batch_size, config.copies, shape.num_latents, shape.latent_width, device=device)
            t = torch.rand(config.batch_size, config.copies, device=device)
            copies = [slice(None)] if packed else [slice(r, r + 1) for r in range(config.copies)]
            for part in copies:
                prefix = reasoner.open(batch.question)
                context = Context(prefix.past, prefix.valid[:, None], prefix.position[:, None])
                v = reasoner.velocity(context, x[:, part], t[:, part])
                if backward:
                    v.square().mean().backward()

    @autocast
    def train_step() -> None:
        loss(reasoner, batch, generator, pipeline.reasoner.loss)[0].backward()

    with FlopCounterMode(display=False) as counter:
        train_step()
    with autocast:
        rate = matmul_rate(config.repeats)
    step_s = median_s(train_step, config.repeats)
    result = {"matmul_gflops": rate / 1e9, "train_step_s": step_s}
    result["train_gflops"] = counter.get_total_flops() / step_s / 1e9
    result["train_share_of_matmul"] = result["train_gflops"] / result["matmul_gflops"]
    if device.type == "cuda":
        result["train_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    for name, backward in (("train", True), ("sample", False)):
        shared_s = median_s(lambda b=backward: velocities(True, b), config.repeats)
        separate_s = median_s(lambda b=backward: velocities(False, b), config.repeats)
        count = config.batch_size * config.copies
        result[f"{name}_velocities_per_s_shared"] = count / shared_s
        result[f"{name}_velocities_per_s_separate"] = count / separate_s
        result[f"{name}_speedup"] = separate_s / shared_s
    table = Table("measure", "value", title=f"{config.preset}, {config.copies} copies, batch {config.batch_size}")
    for name, value in result.items():
        table.add_row(name, f"{value:,.3g}")
    console.print(table)
    if config.json:
        write_json_atomic(Path(config.json), {**result, **provenance()})
    return result


def random_batch(reasoner: LatentReasoner, pipeline: Pipeline, config: Config) -> Batch:
    """Texts of the preset's task, or of the lengths asked for, with random latents."""
    task, size, blocks = pipeline.sft.data.task, config.batch_size, pipeline.reasoner.max_blocks
    if config.question_tokens:
        questions, answers = ["1" * config.question_tokens] * size, ["1" * config.answer_tokens] * size
    else:
        problems = [task.problem("train", i) for i in range(size)]
        questions, answers = [p.question for p in problems], [p.answer for p in problems]
    shape, device = (size, blocks), reasoner.backbone.device
    latents = torch.randn(*shape, reasoner.config.num_latents, reasoner.config.latent_width, device=device)
    return Batch(
        question=reasoner.backbone.tokenize(questions, opening=True),
        answer=reasoner.backbone.tokenize(answers, add_eos=True),
        target=latents,
        context=latents,
        block_valid=torch.ones(shape, dtype=torch.bool, device=device),
    )
