"""`ladi quickstart`: the first look. Evaluate the bundled models, watch one learn and think, write a report.

`--from-scratch` trains every stage instead, and continues where an interrupted run stopped.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ladi.bundled import ASSETS
from ladi.inference.evaluate import EvalConfig, evaluate, load_model
from ladi.inference.sample import denoising_record
from ladi.models.generation import SampleConfig
from ladi.models.reasoner import LatentReasoner
from ladi.progress import eval_progress, eval_table, frames_table
from ladi.report import build_report
from ladi.rundir import write_json_atomic
from ladi.train import reasoner, rollout, sft, vae
from ladi.train.data import DataConfig
from ladi.train.loop import LoopConfig, OptimConfig
from ladi.train.presets import PRESETS, Pipeline

# Seconds of a step beside a step of `sft`, from the stages' logs; the estimate scales them by this machine.
RELATIVE_COST = {"sft": 1.0, "vae": 1.0, "reasoner": 1.7, "rollout": 3.0}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the quickstart."""

    out_dir: Path = Path("runs/quickstart")
    preset: str = "cd3_tiny"
    """With --from-scratch, what is trained; otherwise which bundled models are loaded."""
    from_scratch: bool = False
    """Train every stage instead of loading the bundled models; resumes if interrupted."""
    num_questions: int = 100
    num_samples: int = 100
    """Texts per question; pass@k goes up to this k."""
    num_steps: int = 30
    """Denoising steps."""
    train_steps: int = 60
    """Stage-2 steps of the minute of training."""
    train_lr: float = 1e-4
    """Its learning rate; low, since batches are small."""
    train_batch: int = 96
    seed: int = 0


def main(config: Config, console: Console) -> Path:
    """Run it all; returns the report's path.

    Raises:
        ValueError: if there are no bundled models of the preset and `from_scratch` is off.
    """
    if config.preset not in PRESETS:
        raise ValueError(f"unknown preset {config.preset!r}; use one of {', '.join(PRESETS)}")
    if config.from_scratch:
        pipeline = PRESETS[config.preset](config.out_dir / "from_scratch", config.seed)
        train_all(pipeline, console)
        models = {
            "AR SFT": pipeline.sft.out_dir / "final",
            "LaDiR stage 1": pipeline.reasoner.out_dir / "final",
            "LaDiR stage 2": pipeline.rollout.out_dir / "final",
        }
        run_dirs = [
            pipeline.sft.out_dir,
            pipeline.vae.out_dir,
            pipeline.reasoner.out_dir,
            pipeline.rollout.out_dir,
        ]
    else:
        folder = ASSETS / config.preset
        if not folder.is_dir():
            raise ValueError(f"no bundled models of preset {config.preset!r}; add --from-scratch to train them")
        pipeline = PRESETS[config.preset](config.out_dir, config.seed)
        names = {"AR SFT": "ar", "LaDiR stage 1": "stage1", "LaDiR stage 2": "stage2"}
        models = {label: folder / name for label, name in names.items()}
        run_dirs = []
    records = [measure(config, pipeline, label, path, console) for label, path in models.items()]
    if not config.from_scratch:
        learned_dir = learn(config, pipeline, models["LaDiR stage 1"], console)
        run_dirs.append(learned_dir)
        label = f"LaDiR stage 1 + {config.train_steps} steps"
        records.append(measure(config, pipeline, label, learned_dir / "final", console))
    show(config, pipeline, models["LaDiR stage 2"], console)
    console.print(
        eval_table(records, title=f"{config.num_questions} held-out puzzles, {config.num_samples} samples each")
    )
    report = build_report([config.out_dir, *run_dirs], config.out_dir / "report.html", "ladi quickstart")
    console.print(f"report: [bold]{report}[/bold]")
    return report


def measure(config: Config, pipeline: Pipeline, label: str, model_dir: Path, console: Console) -> dict:
    """Evaluate one model and keep the record under `eval/`."""
    model = load_model(model_dir)
    is_latent = isinstance(model, LatentReasoner)
    ks = tuple(k for k in (1, 2, 5, 10, 20, 50, 100) if k <= config.num_samples)
    eval_config = EvalConfig(
        model_dir=model_dir,
        task=pipeline.eval.task,
        num_questions=config.num_questions,
        num_samples=config.num_samples,
        ks=ks,
        sample=SampleConfig(num_steps=config.num_steps, temperature=0.0 if is_latent else 1.0),
        latent_use_samples=4 if is_latent else 0,
        label=label,
        seed=config.seed,
    )
    with eval_progress(console, f"evaluating {label}") as progress:
        record = evaluate(eval_config, model, progress)
    console.print(eval_table([record]))
    path = config.out_dir / "eval" / (label.replace(" ", "_").replace("+", "plus") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, record)
    return record


def learn(config: Config, pipeline: Pipeline, reasoner_dir: Path, console: Console) -> Path:
    """About a minute of stage 2 from the bundled stage-1 reasoner; returns the run's folder."""
    console.print(f"\nTraining stage 2 for {config.train_steps} steps from the stage-1 reasoner ...")
    steps, size = config.train_steps, config.train_batch
    stage = replace(
        pipeline.rollout,
        out_dir=config.out_dir / "learn",
        reasoner_dir=reasoner_dir,
        vae_dir=reasoner_dir.parent / "vae",
        latents_path=config.out_dir / "latents.safetensors",
        data=DataConfig(task=pipeline.rollout.data.task, num_train=max(steps * size, size)),
        loop=LoopConfig(
            steps=steps,
            batch_size=size,
            micro_batch_size=size,
            log_every=2,
            checkpoint_every=steps,
            seed=config.seed,
            optim=OptimConfig(lr=config.train_lr, warmup_steps=5, ema_decay=0.9),
        ),
    )
    rollout.main(stage)
    return stage.out_dir


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
    """Every stage that is not finished yet, in order, after an estimate of the time."""
    stages = {"sft": sft, "vae": vae, "reasoner": reasoner, "rollout": rollout}
    step_s = time_sft_step(pipeline)
    seconds = {name: RELATIVE_COST[name] * step_s * getattr(pipeline, name).loop.steps for name in stages}
    parts = ", ".join(f"{name} {s / 60:.0f}" for name, s in seconds.items())
    console.print(f"Training from scratch takes about {sum(seconds.values()) / 60:.0f} minutes here ({parts}).")
    for name, stage in stages.items():
        config = getattr(pipeline, name)
        if not (config.out_dir / "final" / "config.json").is_file():
            stage.main(config)


def time_sft_step(pipeline: Pipeline) -> float:
    """Measured seconds of one optimizer step of the stage `sft` on this machine, without the optimizer."""
    import torch

    from ladi.inference.text import alphabet, sft_target
    from ladi.models.backbone import Backbone
    from ladi.train.data import tokenize_pairs

    config = pipeline.sft
    backbone = Backbone.from_config(config.backbone, alphabet(config.data.task))
    problems = config.data.problems(0, config.loop.batch_size, 0, config.loop.batch_size)
    targets = [sft_target(p, config.data.task) for p in problems]
    batch = tokenize_pairs(backbone, [p.question for p in problems], targets)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        sft.loss(backbone, batch, torch.Generator())[0].backward()
        times.append(time.perf_counter() - start)
    return min(times)
