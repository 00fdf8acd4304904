"""The command `ladi`: train, sample, eval, report, bench, doctor, quickstart.

ladi train reasoner --preset cd3_tiny --loop.steps 500
ladi eval --preset cd3_one_block --model-dir assets/cd3_one_block/rl --json eval.json
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from ladi import bench, bench_rl, doctor, quickstart
from ladi.bundled import resolve
from ladi.inference.evaluate import evaluate
from ladi.inference.models import load_model
from ladi.inference.sample import denoising_record, denoising_texts, frames
from ladi.models.assistant import LatentAssistant
from ladi.models.backbone import Dtype
from ladi.models.generation import SampleConfig
from ladi.models.reasoner import LatentReasoner
from ladi.progress import eval_progress, eval_table, frames_table, texts_table
from ladi.report import (
    Shown,
    build_report,
    differences_table,
    numbers_table,
    results_table,
    seeds_table,
    update_markdown,
    write_figure,
)
from ladi.rundir import is_finished, latest_checkpoint, provenance, write_json_atomic
from ladi.train import dlr, dlr_warmup, grpo, reasoner, rl, rollout, sft, vae
from ladi.train.data import begin
from ladi.train.presets import DEFAULT, PRESETS, preset_named
from ladi.train.rewards import RewardError

STAGES: dict[str, Callable[[Any], Path]] = {
    "sft": sft.main,
    "vae": vae.main,
    "reasoner": reasoner.main,
    "rollout": rollout.main,
    "rl": rl.main,
    "grpo": grpo.main,
    "dlr-warmup": dlr_warmup.main,
    "dlr": dlr.main,
}

USAGE = f"""ladi: latent diffusion reasoning for language models

  ladi quickstart                 evaluate the bundled models, train a little, write a report
  ladi train STAGE --preset NAME  train one stage: {", ".join(STAGES)}
  ladi eval --preset NAME         measure a model: pass@k, diversity, latent use
  ladi sample QUESTION            think about one question, visibly
  ladi report RUN...              plots and tables of runs, as one HTML file
  ladi doctor --preset NAME       what a preset needs, and what is missing here
  ladi bench [rl]                 throughput of the shared-context primitive, or of updates beside TRL's

`ladi COMMAND --help` lists the settings. Presets ({DEFAULT} where none is named): {", ".join(PRESETS)}."""

console = Console()


def say(text: str) -> None:
    """Print a text as it is: names and paths may hold what rich would take for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def take(args: list[str], option: str, default: str) -> tuple[str, list[str]]:
    """The value of one `--option VALUE` or `--option=VALUE` (or the default) and the other arguments.

    Raises:
        ValueError: if the value is missing.
    """
    at = next((i for i, arg in enumerate(args) if arg.partition("=")[0] == option), None)
    if at is None:
        return default, args
    if "=" in args[at]:
        return args[at].partition("=")[2], args[:at] + args[at + 1 :]
    if at + 1 == len(args):
        raise ValueError(f"{option} needs a value")
    return args[at + 1], args[:at] + args[at + 2 :]


def take_preset(args: list[str]) -> tuple[str, list[str]]:
    """The value of `--preset` (or `presets.DEFAULT`) and the other arguments."""
    return take(args, "--preset", DEFAULT)


def configured(default: Any, args: Sequence[str], prog: str) -> Any:
    """`default` with the fields that `args` override."""
    plain = tyro.conf.AvoidSubcommands[type(default)]  # type: ignore[valid-type]
    return tyro.cli(plain, default=default, args=list(args), prog=prog)


def train(args: list[str]) -> None:
    """`ladi train STAGE --preset NAME [--field value ...]`."""
    if not args or args[0] not in STAGES:
        raise ValueError(f"ladi train needs a stage: {', '.join(STAGES)}")
    stage = args[0]
    preset, rest = take_preset(args[1:])
    config = configured(getattr(preset_named(preset)(), stage.replace("-", "_")), rest, f"ladi train {stage}")
    final, was_finished = config.out_dir / "final", is_finished(config.out_dir)
    if was_finished and latest_checkpoint(config.out_dir) is None:  # deleted since: a stage would begin anew
        begin(config)
    else:
        final = STAGES[stage](config)
    say(f"{'finished before, nothing to train:' if was_finished else 'saved'} {final}")


def run_eval(args: list[str]) -> None:
    """`ladi eval --preset NAME [--model-dir DIR] [--json FILE] [--denoising FILE]`.

    Prints the table and writes the record to FILE; `--denoising` writes what `ladi report` draws of denoising, of the
    first three questions, which it finds as `eval/denoising.json` in a run's folder.
    """
    preset, rest = take_preset(args)
    json_path, rest = take(rest, "--json", "")
    denoising_path, rest = take(rest, "--denoising", "")
    config = configured(preset_named(preset)().eval, rest, "ladi eval")
    config = replace(config, model_dir=resolve(config.model_dir))
    model = load_model(config.model_dir, config.dtype, config.main)
    if denoising_path and not isinstance(model, LatentReasoner):
        raise ValueError(f"{config.model_dir} is no reasoner: nothing is denoised; leave --denoising out")
    with eval_progress(console) as progress:
        record = evaluate(config, model, progress)
    if json_path:
        write_json_atomic(Path(json_path), record)
    console.print(eval_table([record]))
    if denoising_path and isinstance(model, LatentReasoner):
        problems = [config.task.problem(config.split, i) for i in range(min(3, config.num_questions))]
        shown = denoising_record(model, config.task, problems, config.sample, config.seed)
        write_json_atomic(Path(denoising_path), shown)


@dataclass(frozen=True, kw_only=True)
class SampleArgs:
    """Think about one question."""

    question: tyro.conf.Positional[str]
    """For Countdown: the inputs, a colon and the target, such as 19,35,44:60."""
    model_dir: Path = Path("assets/cd3_one_block/rl")
    """A saved reasoner or assistant; a path that starts with assets/ names one that came with ladi."""
    run: Path | None = None
    """A run's folder, whose `final/` is taken instead of `model_dir`."""
    main: str = ""
    """Where an assistant's main model lies now; empty: where it lay at training."""
    num_latents: int = 8
    """Independent trajectories."""
    show_denoising: bool = False
    """Decode the blocks of the first three trajectories at several times."""
    sample: tyro.conf.OmitArgPrefixes[SampleConfig] = field(default_factory=SampleConfig)
    dtype: Dtype = "float32"
    """Of the weights."""
    seed: int = 0


def run_sample(args: list[str]) -> None:
    """`ladi sample QUESTION [--run DIR | --model-dir DIR] [--main DIR] [--num-latents N] [--show-denoising]`."""
    chosen = tyro.cli(SampleArgs, args=args, prog="ladi sample")
    folder = resolve(chosen.model_dir if chosen.run is None else chosen.run / "final")
    model = load_model(folder, chosen.dtype, chosen.main)
    if isinstance(model, LatentAssistant):
        sample_assistant(model, chosen)
        return
    if not isinstance(model, LatentReasoner):
        raise ValueError(f"{folder} is a token-level model; ladi sample needs a reasoner or an assistant")
    out = model.generate([chosen.question], num_latents=chosen.num_latents, seed=chosen.seed, **vars(chosen.sample))
    console.print(texts_table(out.texts[0]))
    if chosen.show_denoising:
        times = out.times[frames(out.times)].tolist()
        for trajectory in range(min(3, chosen.num_latents)):
            shown = denoising_texts(model, chosen.question, out, 0, trajectory)
            console.print(frames_table(f"trajectory {trajectory + 1}", times, shown))


def sample_assistant(model: LatentAssistant, chosen: SampleArgs) -> None:
    """The texts that the main model writes after each of the assistant's trajectories."""
    if chosen.show_denoising:
        raise ValueError("an assistant's latents are not denoised; leave --show-denoising out")
    scale, temperature = chosen.sample.initial_noise, chosen.sample.temperature
    out = model.generate(
        [chosen.question],
        num_latents=chosen.num_latents,
        noise_scale=scale,
        temperature=temperature,
        seed=chosen.seed,
    )
    console.print(texts_table(out.texts[0]))


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Write plots and tables of one or more runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path = Path("report.html")
    title: str = "ladi report"
    markdown: tuple[str, ...] = ()
    """FILE#MARKER...: also put the results table between those files' markers <!-- results:MARKER -->."""
    over_seeds: bool = False
    """In that table, one row for evaluations that differ in their seed alone."""
    against: str | None = None
    """Label of a model: print how the others differ from it on the same questions, and put that below the table too."""
    figure: Path | None = None
    """Also write one plot alone, as an SVG file."""
    figure_shows: Shown = "pass_at_k"
    """`coverage` is pass@k of the largest k against pass@1, of models that were evaluated at several initial noises or
    temperatures."""


def run_report(args: list[str]) -> None:
    """`ladi report RUN... [--out FILE] [--markdown FILE#MARKER...] [--against LABEL] [--figure FILE]`."""
    chosen = tyro.cli(ReportArgs, args=args, prog="ladi report")
    if not chosen.runs:
        raise ValueError("ladi report needs at least one run's folder")
    say(f"wrote {build_report(chosen.runs, chosen.out, chosen.title)}")
    if chosen.figure:
        say(f"wrote {write_figure(chosen.runs, chosen.figure, chosen.figure_shows)}")
    differences = differences_table(chosen.runs, chosen.against) if chosen.against else ""
    if differences:
        say(differences)
    for target in chosen.markdown:
        path, _, marker = target.partition("#")
        table = (seeds_table if chosen.over_seeds else results_table)(chosen.runs)
        update_markdown(Path(path), marker, f"{table}\n\n{differences}" if differences else table)


def run_bench(args: list[str]) -> None:
    """`ladi bench [rl] [--markdown FILE#MARKER]`: time the velocity primitive, or an update of RL."""
    markdown, rest = take(args, "--markdown", "")
    result: dict[str, Any]
    if rest[:1] == ["rl"]:
        result = dict(bench_rl.main(tyro.cli(bench_rl.Config, args=rest[1:], prog="ladi bench rl"), console))
    else:
        result = dict(bench.main(tyro.cli(bench.Config, args=rest, prog="ladi bench"), console))
    if markdown:
        path, _, marker = markdown.partition("#")
        update_markdown(Path(path), marker, numbers_table(result, provenance()))


def run_doctor(args: list[str]) -> None:
    """`ladi doctor --preset NAME [--data.task.path FOLDER] [--backbone.name-or-path MODEL]`."""
    preset, rest = take_preset(args)
    doctor.main(configured(doctor.configuration(preset), rest, "ladi doctor"), console)


COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "train": train,
    "eval": run_eval,
    "sample": run_sample,
    "report": run_report,
    "bench": run_bench,
    "doctor": run_doctor,
    "quickstart": lambda args: quickstart.main(tyro.cli(quickstart.Config, args=args, prog="ladi quickstart"), console),
}


def avoid_mps() -> None:
    """Train on the CPU of an Apple computer, whose GPU Accelerate would take: that has no float64, in which tokens are
    drawn. A device that the environment names already is left.
    """
    if torch.backends.mps.is_available() and not {"ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"} & os.environ.keys():
        os.environ["ACCELERATE_USE_CPU"] = "1"
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # the first is not read where processes are counted before


def main() -> None:
    """Run one command; what a user can mend is said in one line, with exit status 2.

    Modules of the working folder can be named (`--reward.functions my_rewards:short`); installed ones come first.
    """
    args, here = sys.argv[1:], str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # behind the rest: a file such as code.py must not hide the standard library's
    if not args or args[0] not in COMMANDS:
        print(USAGE)
        sys.exit(0 if args[:1] in ([], ["--help"], ["-h"]) else 2)
    avoid_mps()
    try:
        COMMANDS[args[0]](args[1:])
    except (ValueError, OSError, FloatingPointError, RewardError) as error:
        print(f"ladi: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
