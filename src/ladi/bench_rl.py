"""Seconds and tokens of one reinforcement-learning update: LaDi-RL, token GRPO, and TRL's GRPOTrainer, in one run."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ladi.bundled import resolve
from ladi.devices import synchronize
from ladi.inference.models import load_model
from ladi.rundir import provenance, write_json_atomic
from ladi.tasks.base import Problem
from ladi.train import grpo, rl
from ladi.train.policy import zero_loss
from ladi.train.presets import preset_named
from ladi.train.rewards import Rewards


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is timed: updates of equal numbers of questions and of sampled texts."""

    preset: str = "cd3_tiny"
    reasoner_dir: Path = Path("assets/cd3_tiny/stage1")
    ar_dir: Path = Path("assets/cd3_tiny/ar")
    questions: int = 8
    """Questions per update."""
    updates: int = 4
    """Timed updates of each after one warm-up; the median is reported."""
    trl: bool = True
    """Also run TRL's GRPOTrainer (`pip install trl`)."""
    json: str = ""
    """File for the numbers; empty prints the table only."""


@contextmanager
def counted_tokens(lm: Any) -> Iterator[list[int]]:
    """The number of tokens of every pass through a transformers model, prompts and padding included."""
    seen: list[int] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = kwargs.get("inputs_embeds")
        x = x if x is not None else kwargs.get("input_ids", args[0] if args else None)
        assert x is not None
        seen.append(x.shape[0] * x.shape[1])

    handle = lm.model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def timed(update: Callable[[int], None], lm: Any, updates: int) -> dict[str, float]:
    """Median seconds and tokens of an update, after one warm-up."""
    update(0)
    seconds, tokens = [], []
    for i in range(1, updates + 1):
        with counted_tokens(lm) as seen:
            start = time.perf_counter()
            update(i)
            synchronize()
            seconds.append(time.perf_counter() - start)
        tokens.append(sum(seen))
    return {"update_s": statistics.median(seconds), "update_tokens": statistics.median(tokens)}


def our_update(model: nn.Module, sample: Callable, loss: Callable) -> Callable[[int], None]:
    """One rollout and one optimizer step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def update(step: int) -> None:
        value, _ = loss(sample(step))
        (value + zero_loss(model)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def time_trl(model_dir: Path, problems: list[Problem], config: grpo.Config, rewards: Rewards, updates: int) -> dict:
    """Updates of TRL's trainer on the same language model, questions and number of texts."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]  # lazily exported

    backbone: Any = load_model(model_dir)
    by_question = {problem.question: problem for problem in problems}
    soa = backbone.tokenizer.convert_ids_to_tokens(backbone.soa)

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        asked = [by_question[prompt.removesuffix(soa)] for prompt in prompts]
        return rewards(asked, completions, whole=True).rewards

    class Clock(TrainerCallback):
        marks: list[tuple[float, int]]

        def __init__(self, seen: list[int]):
            self.marks, self.seen = [], seen

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.marks.append((time.perf_counter(), sum(self.seen)))

    questions = config.loop.batch_size
    texts = questions * config.policy.num_generations
    with tempfile.TemporaryDirectory() as folder, counted_tokens(backbone.lm) as seen:
        clock = Clock(seen)
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=texts,
            num_generations=config.policy.num_generations,
            max_completion_length=config.policy.max_completion_length,
            temperature=config.policy.temperature,
            beta=0.0,
            learning_rate=1e-6,
            max_steps=updates + 1,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
        )
        data = Dataset.from_list([{"prompt": problem.question + soa} for problem in problems])
        trainer = GRPOTrainer(
            model=backbone.lm,
            reward_funcs=reward,  # type: ignore[arg-type]
            args=settings,
            train_dataset=data,
            processing_class=backbone.tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    differences = list(zip(clock.marks[:-1], clock.marks[1:], strict=True))
    return {
        "update_s": statistics.median(b[0] - a[0] for a, b in differences),
        "update_tokens": statistics.median(b[1] - a[1] for a, b in differences),
    }


def main(config: Config, console: Console) -> dict[str, dict[str, float]]:
    """Time the three; print and return seconds and tokens per update and per text.

    Raises:
        ValueError: if the preset is unknown, or TRL is asked for and not installed.
    """
    preset = preset_named(config.preset)
    if config.trl and find_spec("trl") is None:
        raise ValueError("TRL is not installed; pip install trl, or add --no-trl")
    pipeline = preset()
    sizes = {"batch_size": config.questions, "micro_batch_size": config.questions}
    latent = replace(pipeline.rl, loop=replace(pipeline.rl.loop, **sizes))
    token = replace(pipeline.grpo, loop=replace(pipeline.grpo.loop, **sizes))
    task = latent.data.task
    rewards = Rewards(latent.reward, task)
    problems = [task.problem("train", i) for i in range(config.questions * (config.updates + 1))]

    def batch(step: int) -> list[Problem]:
        return problems[step * config.questions : (step + 1) * config.questions]

    def generator(step: int) -> torch.Generator:
        return torch.Generator().manual_seed(step)

    reasoner: Any = load_model(config.reasoner_dir)
    backbone: Any = load_model(config.ar_dir)
    updates = {
        "LaDi-RL": (
            reasoner.backbone.lm,
            our_update(
                reasoner,
                lambda step: rl.sample_rollout(reasoner, batch(step), rewards, latent, generator(step)),
                lambda rollout: rl.loss(reasoner, rollout, latent),
            ),
        ),
        "token GRPO": (
            backbone.lm,
            our_update(
                backbone,
                lambda step: grpo.sample_rollout(backbone, batch(step), rewards, token, generator(step)),
                lambda rollout: grpo.loss(backbone, rollout, token),
            ),
        ),
    }
    results = {name: timed(update, lm, config.updates) for name, (lm, update) in updates.items()}
    if config.trl:
        results["TRL GRPOTrainer"] = time_trl(resolve(config.ar_dir), problems, token, rewards, config.updates)
    texts = config.questions * token.policy.num_generations
    table = Table("update of", "seconds", "tokens", "ms per text", "tokens per text")
    for name, row in results.items():
        row["text_ms"], row["text_tokens"] = 1000 * row["update_s"] / texts, row["update_tokens"] / texts
        values = (row["update_s"], row["update_tokens"], row["text_ms"], row["text_tokens"])
        table.add_row(name, *(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values))
    table.title = f"{config.preset}: {config.questions} questions x {token.policy.num_generations} texts"
    console.print(table)
    if config.json:
        write_json_atomic(Path(config.json), {**results, **provenance()})
    return results
