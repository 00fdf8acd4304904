"""`ladi doctor`: what a preset will need and what is missing here, before anything is loaded."""

import json
import shutil
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ladi.bundled import located
from ladi.devices import cpu_has_bf16
from ladi.footprint import Estimate, estimates, lengths
from ladi.models.backbone import BackboneConfig
from ladi.progress import short
from ladi.tasks.code import Code
from ladi.tasks.sandbox import shared_sandbox
from ladi.train.data import DataConfig
from ladi.train.pipeline import Pipeline
from ladi.train.presets import preset_named

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tyro", "math-verify")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is examined; made by `configuration`."""

    preset: str
    data: DataConfig
    """What the stages read; --data.task.path (or train-path and test-path) names a local copy of a published one."""
    backbone: BackboneConfig
    """Of the stage `sft` and of those that go on from its model; --backbone.name-or-path names a pretrained one."""


def configuration(preset: str) -> Config:
    """A preset with its data and backbone.

    Raises:
        ValueError: if the preset is unknown.
    """
    first = preset_named(preset)().sft
    return Config(preset=preset, data=first.data, backbone=first.backbone)


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
        if not cpu_has_bf16():
            rows.append(("bf16", "this CPU has no instructions for it: --loop.precision fp32 is many times as fast"))
    free = shutil.disk_usage(Path.cwd()).free
    rows.append(("disk", f"{free / 2**30:.1f} GiB free here"))
    return rows


def needs(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Models that the stages `sft` and `dlr-warmup` start from, and the sandbox that the task needs: what is here."""
    rows = []
    named = {pipeline.sft.backbone.name_or_path, pipeline.dlr_warmup.backbone.name_or_path, pipeline.dlr_warmup.main}
    for name in sorted(name for name in named if name and not name.endswith("/final")):
        rows.append((name, "here" if is_here(name) else "not here: downloaded at the start, or name a folder"))
    if isinstance(pipeline.rl.data.task, Code):
        box = shared_sandbox()
        shut_in = box.probe() == "namespaces"
        weak = f"refused without --data.task.allow-unsafe-exec: no namespaces here ({box.weakness})"
        rows.append(("generated programs", "run in namespaces of their own" if shut_in else weak))
    return rows


def is_here(name: str) -> bool:
    """Whether configuration and all weights of a model are here: in a folder, bundled, or in the hub's cache."""
    weights = [file_of(name, "model.safetensors")]
    index = file_of(name, "model.safetensors.index.json")
    if weights == [None] and index is not None:
        weights = [file_of(name, part) for part in parts_of(index)]
    return all([file_of(name, "config.json"), *weights])


def parts_of(index: Path) -> set[str]:
    """Files over which a model's weights are spread."""
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())


def file_of(name: str, file: str) -> Path | None:
    """Where a file of a model is: in the folder or bundled model of that name, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache  # comes with transformers

    try:
        folder = Path(located(name))
        if folder.is_dir():
            return folder / file if (folder / file).is_file() else None
        found = try_to_load_from_cache(name, file)
    except ValueError:  # neither a bundled model nor a name of the hub
        return None
    return Path(found) if isinstance(found, str) else None


def main(config: Config, console: Console) -> dict[str, Estimate]:
    """Print what the preset needs and what is missing; returns the estimates."""
    pipeline = preset_named(config.preset)()
    pipeline = replace(pipeline, sft=replace(pipeline.sft, data=config.data, backbone=config.backbone))
    table = Table("", "", title="this machine and this preset", show_header=False)
    for row in [*environment(), *needs(pipeline)]:
        table.add_row(*row)
    console.print(table)
    size = None
    try:
        size = lengths(pipeline)
    except (ValueError, OSError) as error:
        paths = [field.name for field in fields(config.data.task) if field.name.endswith("path")]
        flags = ", ".join(f"--data.task.{name.replace('_', '-')}" for name in paths)
        said = f"No activations and tokens, for the data cannot be read: {error}{f' (here: {flags})' * bool(flags)}"
        console.print(said, markup=False)
    found = estimates(pipeline, size)
    console.print(estimate_table(config.preset, found))
    console.print(disk_line(found, shutil.disk_usage(Path.cwd()).free))
    return found


def disk_line(found: dict[str, Estimate], free: int) -> str:
    """What all stages, one after another, need of the disk, and whether it has that."""
    largest = max(found, key=lambda stage: found[stage].disk_peak)
    stays = [0, *accumulate(estimate.disk for estimate in found.values())]
    needed = max(before + estimate.disk_peak for before, estimate in zip(stays, found.values(), strict=False))
    said = (
        f"Disk: each stage leaves its model and newest checkpoint, all together {stays[-1] / 2**30:.2f} GiB; while it "
        f"trains, {largest} has the most, {found[largest].disk_peak / 2**30:.2f} GiB."
    )
    too_little = f" Too little is free here for all: {free / 2**30:.1f} GiB; delete what later stages do not read."
    return said + too_little * (needed > free)


def estimate_table(preset: str, found: dict[str, Estimate]) -> Table:
    """One row a stage."""
    columns = ("stage", "params", "trained", "state", "activations", "sampling", "memory", "tokens")
    table = Table(*columns, title=preset, box=box.SIMPLE_HEAD, padding=(0, 0))
    table.caption = (
        "params: of all models that are loaded; then GiB of a process: state: weights, gradients and optimizer; "
        "activations: of a micro-batch; sampling: keys and values of a rollout's texts; memory: state and the larger "
        "of these two; tokens: of an update, over all processes"
    )
    for stage, e in found.items():
        cells = [short(x) for x in (e.parameters, e.trainable)] + [f"{e.state / 2**30:.2f}"]
        if e.activations is None or e.sampling is None or e.tokens_per_update is None:
            cells += ["?"] * 4
        else:
            memory = e.state + max(e.activations, e.sampling)
            cells += [f"{x / 2**30:.2f}" for x in (e.activations, e.sampling, memory)]
            cells.append(f"{e.tokens_per_update:,}")
        table.add_row(stage, *cells)
    return table
