"""`ladi doctor`: what a preset will need and what is missing here, before anything is loaded.

Memory is estimated from the models' shapes: weights, gradients, the optimizer's moments and their average in fp32, as
the loop keeps them, and what the backward pass saves of one micro-batch, counted operation by operation in fp32 (under
bf16 a little over half of that).
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ladi.inference.text import alphabet, blocks_of, sft_target
from ladi.models.backbone import SPECIAL_TOKENS, BackboneConfig, LmShape, lm_shape
from ladi.tasks.code import Code
from ladi.tasks.sandbox import shared_sandbox
from ladi.train.pipeline import Pipeline
from ladi.train.presets import PRESETS

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tyro", "math-verify")
CHARACTERS_PER_TOKEN = 3.5
"""Of a pretrained model's tokenizer, which need not be here; a new model reads single characters."""
NUM_SPECIAL = len(SPECIAL_TOKENS) + 3
"""Special tokens of a new model."""
SAMPLE = 64
"""Problems that lengths are measured on."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is examined."""

    preset: str = "cd3_tiny"


@dataclass(frozen=True)
class Estimate:
    """Of one stage, in one process; bytes."""

    parameters: int
    """Of all models that are loaded."""
    trainable: int
    state: int
    """Weights of all models, gradients, moments and average of the trainable ones."""
    activations: int
    tokens_per_update: int

    @property
    def total(self) -> int:
        return self.state + self.activations


@dataclass(frozen=True)
class Lengths:
    """Most tokens of a problem, which is what a padded batch holds."""

    question: float
    target: float
    """What a token-level model writes."""
    answer: float
    blocks: int
    block: float


def saved_floats(shape: LmShape, tokens: int | float, length: int | float) -> int | float:
    """Numbers that the backward pass needs of `tokens` positions, each seeing a mask of `length`, without the LM head.

    A layer saves, per position, 6 vectors of the model's width (two norms, two residuals), 4 of the MLP's, the heads'
    queries, keys and values after rotation and repetition, where heads are normalised those before too, and its mask.
    """
    heads = (6 if shape.normalises_heads else 4) * shape.head_width + 2 * shape.normalises_heads * shape.kv_width
    layer = 6 * shape.width + 4 * shape.mlp_width + heads + shape.num_heads + length
    return tokens * (shape.num_layers * layer + 2 * shape.width)


def lengths(pipeline: Pipeline) -> Lengths:
    """The longest among the first problems of the training split.

    Raises:
        ValueError, OSError: if the data cannot be read.
    """
    data, is_named = pipeline.sft.data, bool(pipeline.sft.backbone.name_or_path)
    task, per_token = data.task, CHARACTERS_PER_TOKEN if is_named else 1.0
    problems = [task.problem("train", i) for i in range(min(SAMPLE, data.num_train))]
    blocks = [blocks_of(problem, pipeline.vae.vae.block, task.step_separator) for problem in problems]

    reads_context = pipeline.vae.vae.reads_context

    def longest(texts: Iterable[str]) -> float:
        return max(map(len, texts)) / per_token + 1  # and one special token

    return Lengths(
        question=longest(p.question for p in problems),
        target=longest(sft_target(p, task) for p in problems),
        answer=longest(p.answer for p in problems),
        blocks=max(map(len, blocks)),
        block=longest("".join(block) if reads_context else block.text for row in blocks for block in row),
    )


def estimates(pipeline: Pipeline, size: Lengths) -> dict[str, Estimate]:
    """What each stage needs of one process that takes the whole batch in micro-batches."""
    vocab = 0 if pipeline.sft.backbone.name_or_path else len(alphabet(pipeline.sft.data.task)) + NUM_SPECIAL
    lm, helper = (lm_shape(stage.backbone, vocab) for stage in (pipeline.sft, pipeline.dlr_warmup))
    main, own = pipeline.dlr_warmup.main, str(pipeline.sft.out_dir / "final")
    steered = lm if main == own else lm_shape(BackboneConfig(name_or_path=main), 0)
    vae, decoder_trains = pipeline.vae.vae, pipeline.vae.vae.decoder == "full"
    group = vae.num_latents
    thought = size.blocks * (group + 2)

    def estimate(loaded: int, trainable: int, loop: Any, saved: float, tokens: float) -> Estimate:
        averaged = bool(loop.optim.ema_decay)
        state = 4 * loaded + 4 * trainable * (3 + averaged)
        return Estimate(loaded, trainable, state, int(4 * saved * loop.micro_batch_size), int(tokens * loop.batch_size))

    def head(shape: LmShape, tokens: float) -> float:
        return tokens * (2 * shape.vocab_size + shape.width)

    p = lm.num_parameters
    sft_tokens = size.question + size.target
    block_tokens = size.block + group
    copies = pipeline.reasoner.loss.noise_draws * size.blocks * (group + 1)
    context = size.question + thought + size.answer
    rl, grpo, dlr = pipeline.rl.policy, pipeline.grpo.policy, pipeline.dlr.policy
    steps = rl.replay_steps or max(1, rl.num_steps - 1)
    replayed = rl.num_latents * size.blocks * steps * (group + 1)
    texts = rl.num_latents * rl.texts_per_latent * size.answer
    thoughts = dlr.num_generations * pipeline.dlr_warmup.assistant.num_latents
    return {
        "sft": estimate(
            p, p, pipeline.sft.loop, saved_floats(lm, sft_tokens, sft_tokens) + head(lm, size.target), sft_tokens
        ),
        "vae": estimate(
            2 * p,
            p * (1 + decoder_trains),
            pipeline.vae.loop,
            size.blocks * (2 * saved_floats(lm, block_tokens, block_tokens) + head(lm, size.block)),
            2 * size.blocks * block_tokens,
        ),
        "reasoner": estimate(
            3 * p,
            p,
            pipeline.reasoner.loop,
            saved_floats(lm, context, context)
            + saved_floats(lm, copies, context + copies)
            # the copies' layers keep the context's keys and values once more
            + 2 * lm.num_layers * lm.head_width * context
            + head(lm, size.answer),
            context + copies,
        ),
        "rl": estimate(
            3 * p + p * bool(rl.beta),
            p,
            pipeline.rl.loop,
            saved_floats(lm, replayed, context + replayed / size.blocks)
            + saved_floats(lm, texts, context)
            + head(lm, texts),
            replayed + texts + rl.num_latents * size.blocks * rl.num_steps * (group + 1),
        ),
        "grpo": estimate(
            p + p * bool(grpo.beta),
            p,
            pipeline.grpo.loop,
            grpo.num_generations * (saved_floats(lm, size.target, sft_tokens) + head(lm, size.target)),
            2 * grpo.num_generations * size.target,
        ),
        "dlr": estimate(
            steered.num_parameters + helper.num_parameters * (1 + bool(dlr.beta)),
            helper.num_parameters,
            pipeline.dlr.loop,
            2 * saved_floats(helper, thoughts, size.question + thoughts / dlr.num_generations),
            3 * thoughts + dlr.num_decoded * (size.target + thoughts / dlr.num_generations),
        ),
    }


def environment() -> list[tuple[str, str]]:
    """Versions, processors, accelerators and memory."""
    rows = []
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, f"missing: pip install {name}"))
    rows.append(("CPU threads", str(torch.get_num_threads())))
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        rows.append((f"GPU {i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_available():
        rows.append(("GPU", "none: training runs on the CPU"))
    free = shutil.disk_usage(Path.cwd()).free
    rows.append(("disk", f"{free / 2**30:.1f} GiB free here"))
    return rows


def needs(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Models that the stages `sft` and `dlr-warmup` start from, and the sandbox that the task needs: what is here."""
    rows = []
    named = {pipeline.sft.backbone.name_or_path, pipeline.dlr_warmup.backbone.name_or_path, pipeline.dlr_warmup.main}
    for name in sorted(name for name in named if name and not name.endswith("/final")):
        try:
            lm_here = Path(name).is_dir() or bool(cached_config(name))
        except ValueError:
            lm_here = False
        rows.append((name, "here" if lm_here else "not here: downloaded at the start, or name a folder"))
    if isinstance(pipeline.rl.data.task, Code):
        box = shared_sandbox()
        shut_in = box.probe() == "namespaces"
        weak = f"refused without --allow-unsafe-exec: no namespaces here ({box.weakness})"
        rows.append(("generated programs", "run in namespaces of their own" if shut_in else weak))
    return rows


def cached_config(name: str) -> str | None:
    """Where the hub's cache keeps a model's configuration, if it does."""
    from huggingface_hub import try_to_load_from_cache  # comes with transformers

    found = try_to_load_from_cache(name, "config.json")
    return found if isinstance(found, str) else None


def main(config: Config, console: Console) -> dict[str, Estimate]:
    """Print what the preset needs and what is missing; returns the estimates, empty if the data is not here.

    Raises:
        ValueError: if the preset is unknown.
    """
    if config.preset not in PRESETS:
        raise ValueError(f"unknown preset {config.preset!r}; use one of {', '.join(PRESETS)}")
    pipeline = PRESETS[config.preset]()
    table = Table("", "", title="this machine and this preset", show_header=False)
    for row in [*environment(), *needs(pipeline)]:
        table.add_row(*row)
    console.print(table)
    try:
        size = lengths(pipeline)
    except (ValueError, OSError) as error:
        console.print(f"No estimate: the data cannot be read. {error}")
        return {}
    found = estimates(pipeline, size)
    console.print(estimate_table(config.preset, found))
    checkpoint = max(16 * estimate.trainable for estimate in found.values())
    free = shutil.disk_usage(Path.cwd()).free
    kept = (pipeline.sft.loop.keep_checkpoints + 1) * checkpoint
    if kept > free:
        console.print(f"The largest stage keeps {kept / 2**30:.1f} GiB of checkpoints: too much for this disk.")
    return found


def estimate_table(preset: str, found: dict[str, Estimate]) -> Table:
    """One row a stage."""
    table = Table("stage", "params", "trained", "state", "activations", "memory", "tokens", title=preset)
    table.caption = (
        "params: millions loaded; state: weights, gradients and optimizer; activations: of a micro-batch; memory: GiB "
        "of a process; tokens: of an update, over all processes"
    )
    for stage, e in found.items():
        millions = (f"{x / 1e6:,.2f}" for x in (e.parameters, e.trainable))
        sizes = (f"{x / 2**30:.2f}" for x in (e.state, e.activations, e.total))
        table.add_row(stage, *millions, *sizes, f"{e.tokens_per_update:,}")
    return table
