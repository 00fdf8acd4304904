"""`ladi quickstart`: reinforce the bundled models in token and in latent space, compare them, write a report.

`--from-scratch` trains every stage before that, and continues where an interrupted run stopped.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ladi.bundled import ASSETS
from ladi.inference.evaluate import EvalConfig, evaluate
from ladi.inference.models import load_model
from ladi.inference.sample import denoising_record
from ladi.models.generation import SampleConfig
from ladi.models.reasoner import LatentReasoner
from ladi.progress import eval_progress, eval_table, frames_table
from ladi.report import build_report
from ladi.rundir import check_settings, latest_checkpoint, write_json_atomic
from ladi.train import grpo, reasoner, rl, rollout, sft, vae
from ladi.train.pipeline import Pipeline
from ladi.train.presets import DEFAULT, preset_named

STAGES = {"sft": sft, "vae": vae, "reasoner": reasoner, "rollout": rollout}
"""What --from-scratch trains, in order."""
AR, LADIR, STAGE_2 = "AR SFT", "LaDiR", "LaDiR with stage 2"
GRPO, LADI_RL = "AR SFT + token GRPO", "LaDiR + LaDi-RL"
BUNDLED = {
    "cd3_one_block": {AR: "cd3_one_block/ar", LADIR: "cd3_one_block/stage1"},
    "cd3_tiny": {AR: "cd3_tiny/ar", LADIR: "cd3_tiny/stage1", STAGE_2: "cd3_tiny/stage2"},
}
"""The supervised models of a preset that came with ladi, in `ASSETS`."""
WINDOW = 10
"""Updates whose mean the live table shows as `now`; the first as many are `start`."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the quickstart."""

    out_dir: Path = Path("runs/quickstart")
    preset: str = DEFAULT
    """With --from-scratch, what is trained; otherwise which bundled models are loaded."""
    from_scratch: bool = False
    """Train every stage instead of loading the bundled models; resumes if interrupted."""
    num_questions: int = 100
    num_samples: int = 64
    """Texts per question; pass@k goes up to this k."""
    num_steps: int = 30
    """Denoising steps of the evaluations."""
    updates: int = 100
    """Updates of token GRPO and of LaDi-RL."""
    questions: int = 16
    """Questions per update."""
    num_latents: int = 16
    """Latent trajectories of a question in LaDi-RL."""
    texts_per_latent: int = 2
    """Texts of each; token GRPO samples as many texts in all."""
    seed: int = 0

    def __post_init__(self):
        if min(self.num_latents, self.texts_per_latent) < 2:
            raise ValueError(
                "LaDi-RL compares a question's latents, and the texts of a latent: need num_latents >= 2 and "
                f"texts_per_latent >= 2, got {self.num_latents} and {self.texts_per_latent}"
            )


def main(config: Config, console: Console) -> Path:
    """Run it all; returns the report's path.

    Raises:
        ValueError: if there are no bundled models of the preset and `from_scratch` is off.
    """
    preset = preset_named(config.preset)
    run_dirs: list[Path] = []
    if config.from_scratch:
        pipeline = preset(config.out_dir / "from_scratch", config.seed)
        train_all(pipeline, console)
        run_dirs += [getattr(pipeline, name).out_dir for name in STAGES]
        runs = {AR: pipeline.sft, LADIR: pipeline.reasoner, STAGE_2: pipeline.rollout}
        models = {label: stage.out_dir / "final" for label, stage in runs.items()}
    else:
        if config.preset not in BUNDLED:
            raise ValueError(
                f"no bundled models of preset {config.preset!r} (there are of {', '.join(BUNDLED)}); "
                "add --from-scratch to train them"
            )
        pipeline = preset(config.out_dir, config.seed)
        models = {label: ASSETS / name for label, name in BUNDLED[config.preset].items()}
    records = [measure(config, pipeline, label, path, console) for label, path in models.items()]
    trained = reinforce(config, pipeline, models, console)
    records += [measure(config, pipeline, label, path / "final", console) for label, path in trained.items()]
    show(config, pipeline, trained[LADI_RL] / "final", console)
    title = f"{config.num_questions} held-out puzzles, {config.num_samples} samples each"
    console.print(eval_table(records, title=title))
    folders = [config.out_dir, *run_dirs, *trained.values()]
    report = build_report(folders, config.out_dir / "report.html", "ladi quickstart")
    console.print(f"report: [bold]{report}[/bold]")
    return report


def measure(config: Config, pipeline: Pipeline, label: str, model_dir: Path, console: Console) -> dict[str, Any]:
    """Evaluate one model and keep the record under `eval/`."""
    model = load_model(model_dir)
    is_latent = isinstance(model, LatentReasoner)
    ks = tuple(k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= config.num_samples)
    eval_config = EvalConfig(
        model_dir=model_dir,
        task=pipeline.eval.task,
        num_questions=config.num_questions,
        num_samples=config.num_samples,
        ks=ks,
        max_text_tokens=pipeline.eval.max_text_tokens,
        sample=SampleConfig(num_steps=config.num_steps, temperature=0.0 if is_latent else 1.0),
        latent_use_samples=4 if is_latent and config.num_questions > 1 else 0,
        label=label,
        seed=config.seed,
    )
    with eval_progress(console, f"evaluating {label}") as progress:
        record = evaluate(eval_config, model, progress)
    console.print(eval_table([record]))
    path = config.out_dir / "eval" / (label.replace(" ", "_").replace("+", "plus") + ".json")
    write_json_atomic(path, record)
    return record


def reinforce(config: Config, pipeline: Pipeline, models: dict[str, Path], console: Console) -> dict[str, Path]:
    """Token GRPO and LaDi-RL at equal numbers of sampled texts, watched live; returns the runs' folders."""
    texts = config.num_latents * config.texts_per_latent
    console.print(
        f"\n{config.updates} updates of token GRPO and of LaDi-RL, {config.questions} questions x {texts} texts each"
    )
    sizes = {"steps": config.updates, "batch_size": config.questions, "micro_batch_size": config.questions}
    token = replace(
        pipeline.grpo,
        out_dir=config.out_dir / "grpo",
        model_dir=models[AR],
        policy=replace(pipeline.grpo.policy, num_generations=texts),
        loop=replace(pipeline.grpo.loop, **sizes),
    )
    latent = replace(
        pipeline.rl,
        out_dir=config.out_dir / "ladi_rl",
        model_dir=models[LADIR],
        policy=replace(pipeline.rl.policy, num_latents=config.num_latents, texts_per_latent=config.texts_per_latent),
        loop=replace(pipeline.rl.loop, **sizes),
    )
    with live_table(console, config.updates) as row:
        grpo.main(token, on_log=lambda step, metrics: row(GRPO, step, metrics))
        rl.main(latent, on_log=lambda step, metrics: row(LADI_RL, step, metrics))
    return {GRPO: token.out_dir, LADI_RL: latent.out_dir}


LIVE_COLUMNS = {
    "reward": "reward/mean",
    "pass@1": "rollout/pass@1",
    "solved": "rollout/pass@group",
    "distinct": "rollout/distinct_correct",
    "entropy": "text/entropy",
    "spread": "latent/spread",
}


@contextmanager
def live_table(console: Console, updates: int) -> Iterator[Any]:
    """A callback row(label, step, metrics): a table `start -> now` that grows with the runs."""
    history: dict[str, list[dict[str, float]]] = {}

    def cell(rows: list[dict[str, float]], key: str) -> str:
        values = [row[key] for row in rows if key in row]
        if not values:
            return "-"
        first, last = values[:WINDOW], values[-WINDOW:]
        return f"{statistics.mean(first):.3g} -> {statistics.mean(last):.3g}"

    def render() -> Table:
        table = Table("method", "update", *LIVE_COLUMNS, "s/upd")
        table.caption = (
            f"means over the first and the last {WINDOW} updates; solved: by any text of the group; "
            "distinct: correct answers of a group; entropy: of texts; spread: of latents"
        )
        for label, rows in history.items():
            seconds = statistics.mean(row["time/step_s"] for row in rows)
            cells = [cell(rows, key) for key in LIVE_COLUMNS.values()]
            table.add_row(label, f"{rows[-1]['step']:.0f}/{updates}", *cells, f"{seconds:.1f}")
        return table

    with Live(render(), console=console, auto_refresh=False) as live:

        def row(label: str, step: int, metrics: dict[str, float]) -> None:
            history.setdefault(label, []).append({**metrics, "step": step})
            if console.is_terminal:
                live.update(render(), refresh=True)
            elif step % WINDOW == 0 or step == updates:
                found = ", ".join(f"{name} {metrics[key]:.3f}" for name, key in LIVE_COLUMNS.items() if key in metrics)
                console.print(f"{label} {step}/{updates}: {found}")

        yield row
        live.update(render(), refresh=True)


def show(config: Config, pipeline: Pipeline, model_dir: Path, console: Console) -> None:
    """Three puzzles being denoised, as text on the terminal and as a record for the report."""
    model, task = load_model(model_dir), pipeline.eval.task
    assert isinstance(model, LatentReasoner)
    problems = [task.problem("test", i) for i in range(3)]
    record = denoising_record(model, task, problems, SampleConfig(num_steps=config.num_steps), config.seed)
    for item in record["questions"]:
        console.print(frames_table(f"{item['question']}  ->  {item['answer']}", item["times"], item["texts"]))
    write_json_atomic(config.out_dir / "eval" / "denoising.json", record)


def train_all(pipeline: Pipeline, console: Console) -> None:
    """Every stage that is not finished yet, in order, after an estimate of the time that they still take.

    Raises:
        ValueError: if a finished one had other settings.
    """
    for name in STAGES:
        config = getattr(pipeline, name)
        check_settings(config.out_dir, config, {})
    steps = {name: steps_left(getattr(pipeline, name)) for name in STAGES}
    if any(steps.values()):
        seconds = seconds_left(pipeline, steps, time_sft_step(pipeline))
        parts = ", ".join(f"{name} {s / 60:.0f}" for name, s in seconds.items())
        console.print(
            f"Training from scratch takes about {sum(seconds.values()) / 60:.0f} minutes here ({parts}), "
            "not counting the evaluations and updates after it."
        )
    for name, stage in STAGES.items():
        if steps[name]:
            stage.main(getattr(pipeline, name))


def steps_left(config: Any) -> int:
    """Steps that a stage still takes, at least 1 where its model is not saved yet; 0 where it is."""
    if (config.out_dir / "final" / "config.json").is_file():
        return 0
    newest = latest_checkpoint(config.out_dir)
    done = 0 if newest is None else int(newest.name.removeprefix("step-"))
    return max(1, config.loop.steps - done)


def relative_costs(pipeline: Pipeline) -> dict[str, float]:
    """Seconds of a step of each stage, and of encoding a batch for the reasoner, beside a step of `sft`: from the logs
    of tiny presets.
    """
    blocks, copies = pipeline.reasoner.max_blocks, pipeline.reasoner.loss.noise_draws
    reading = 2.7 if pipeline.vae.vae.reads_context else 1.0
    return {
        "sft": 1.0,
        "vae": 0.8 * blocks * reading,
        "reasoner": 1.3 + 0.07 * blocks * copies,
        "rollout": 2.2,
        "encoding": 0.15 * blocks * reading,
    }


def seconds_left(pipeline: Pipeline, steps: dict[str, int], step_s: float) -> dict[str, float]:
    """Estimated seconds of each unfinished stage, and of encoding where that is not done, if a step of `sft` takes
    `step_s`.
    """
    if not pipeline.reasoner.latents_path.is_file():
        steps = {**steps, "encoding": pipeline.reasoner.data.size // pipeline.sft.loop.batch_size}
    costs = relative_costs(pipeline)
    return {name: costs[name] * step_s * left for name, left in steps.items() if left}


def time_sft_step(pipeline: Pipeline) -> float:
    """Measured seconds of one optimizer step of the stage `sft` on this machine."""
    import torch

    from ladi.inference.text import alphabet, sft_target
    from ladi.models.backbone import Backbone
    from ladi.train.data import tokenize_pairs
    from ladi.train.optim import ALIKE, make_optimizers

    config = pipeline.sft
    backbone = Backbone.from_config(config.backbone, alphabet(config.data.task))
    problems = config.data.examples(config.loop.batch_size, config.loop.seed).problems(0, 0, config.loop.batch_size)
    targets = [sft_target(p, config.data.task) for p in problems]
    batch = sft.Batch(*tokenize_pairs(backbone, [p.question for p in problems], targets))
    optimizers = make_optimizers(dict(backbone.named_parameters()), config.loop.optim, ALIKE)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        sft.loss(backbone, batch, torch.Generator())[0].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
