"""The one optimizer loop, on Hugging Face Accelerate: accumulate, clip, step, average, log, save, resume.

The only file, with sharding.py, that knows processes and devices. A step is a pure function of the weights, the
optimizer state and the step's number: batches come by index and every micro-batch has a generator seeded by (seed,
step, index), so that a resumed run equals the uninterrupted one and no generator state need be saved.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ladi.arrays import Tensor
from ladi.devices import processes, warn_of_slow_bf16
from ladi.models.backbone import Backbone
from ladi.rundir import (
    append_metrics,
    atomic_dir,
    check_disk_space,
    is_finished,
    latest_checkpoint,
    prune_checkpoints,
    truncate_metrics,
)
from ladi.train import sharding
from ladi.train.checkpoint import State
from ladi.train.optim import ALIKE, OptimConfig, Treatment, ema_decay, gradient_norm, learning_rate

Loss = Callable[[Any, Any, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
HELD_OUT = 20_000_000
"""Where the generators of validation's micro-batches begin; those of training are numbered by examples."""
OnLog = Callable[[int, dict[str, float]], None]


def at_least(least: int, config: object, *names: str) -> None:
    """Check settings of a run.

    Raises:
        ValueError: with name and value of one that is smaller than `least`.
    """
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, batches, precision, logging and checkpoints of a run."""

    steps: int
    batch_size: int = 256
    """Examples per optimizer step, over all processes."""
    micro_batch_size: int = 256
    """Examples per forward and backward pass of one process, which takes its whole share at once if that is smaller."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """tf32: fp32, but where a GPU can do so matrix products round their factors to 10 bits, several times as fast."""
    gradient_checkpointing: bool = False
    """Compute activations of the transformer's layers again in the backward pass: less memory, a third more time."""
    log_every: int = 20
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    """While it trains. When the finished model is written the newest stays: copied into the folder of a longer run, as
    `checkpoints/step-...`, that goes on from it."""
    trackers: tuple[str, ...] = ()
    """Accelerate's trackers beside metrics.jsonl: tensorboard, wandb, trackio."""
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        at_least(1, self, "steps", "batch_size", "micro_batch_size")
        at_least(1, self, "log_every", "checkpoint_every", "keep_checkpoints")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        for name in self.trackers:
            if name not in ("tensorboard", "wandb", "trackio"):
                raise ValueError(f"unknown tracker {name!r}; use tensorboard, wandb or trackio")
            if find_spec(name) is None:
                raise ValueError(f"tracker {name!r} is not installed; pip install {name}, or leave it out")


@dataclass(frozen=True)
class Share:
    """One process's part of a step's batch, examples [first, stop)."""

    first: int
    stop: int
    total: Callable[[Tensor], Tensor]
    """Sums a tensor over all processes."""


@runtime_checkable
class Batches(Protocol):
    """Where the examples of a step come from, which depend on the step and on places in its batch alone."""

    def prepare(self, step: int, share: Share) -> None:
        """Called once a step, before its micro-batches, with this process's share of the batch."""

    def batch_at(self, step: int, start: int, stop: int) -> Any:
        """The micro-batch of examples [start, stop) of a step's batch."""


@dataclass(frozen=True)
class Validation:
    """Examples that are not trained on, one batch of them, and the steps from one look at their losses to the next."""

    every: int
    num_examples: int
    batches: Batches


def share_size(config: LoopConfig, num_processes: int) -> int:
    """Examples of a batch for each process, in micro-batches of one size: they count alike in the gradient's mean.

    Raises:
        ValueError: if the batch cannot be shared so.
    """
    if config.batch_size % num_processes:
        raise ValueError(
            f"batch_size ({config.batch_size}) must be a multiple of the number of processes ({num_processes})"
        )
    share, micro = config.batch_size // num_processes, config.micro_batch_size
    if share > micro and share % micro:
        fitting = next(size for size in range(micro, 0, -1) if share % size == 0)
        raise ValueError(
            f"each of {num_processes} processes takes {share} of {config.batch_size} examples, which is no multiple of "
            f"micro_batch_size ({micro}): the smaller last micro-batch would count too much; set micro_batch_size "
            f"{fitting}"
        )
    return share


@contextmanager
def main_process_first() -> Iterator[None]:
    """Runs its block in the main process, then in the others: for files that one writes and all read."""
    with processes().main_process_first():
        yield


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return processes().is_main_process


def save_final(model: Any, run_dir: Path) -> Path:
    """Write the finished model to `final/`, whole or not at all, once whatever the number of processes, and drop all
    checkpoints but the newest; returns the folder. One that is there already stays as it is.
    """
    if is_main_process() and not is_finished(run_dir):
        with atomic_dir(run_dir / "final") as folder:
            model.save_pretrained(folder)
        prune_checkpoints(run_dir, 1)
    processes().wait_for_everyone()
    return run_dir / "final"


def step_generator(seed: int, step: int, index: int = 0) -> torch.Generator:
    """A CPU generator that depends on (seed, step, index) alone; index is a micro-batch's first example."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 1_000_033 + index)


class LossModule(nn.Module):
    """Puts the loss inside a forward pass, which is where data-parallel wrappers hook in."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.model, batch, generator)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT append to instead of stopping the process (main thread only)."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    names = (signal.SIGTERM, signal.SIGINT)
    previous = {name: signal.signal(name, lambda number, _: received.append(number)) for name in names}
    try:
        yield received
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Within, fp32 matrix products round their factors as `tf32` allows, if that is the precision."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Meter:
    """Metrics of the steps since the last log."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []
        self.start = time.perf_counter()

    def take(self) -> dict[str, float]:
        """Them as one, and the seconds per step; starts anew."""
        result = merged(self.steps) | {"time/step_s": (time.perf_counter() - self.start) / len(self.steps)}
        self.__init__()
        return result


def check_finite(metrics: dict[str, float], step: int, first: int, batch_size: int, run_dir: Path) -> None:
    """Raise if a loss or the gradient norm is not finite; `first` is the first example of the step's batch.

    Raises:
        FloatingPointError: with the step, the terms, the examples and the last good checkpoint.
    """
    if all(math.isfinite(value) for name, value in metrics.items() if name.startswith(("loss/", "optim/"))):
        return
    terms = ", ".join(f"{name}={value:.4g}" for name, value in metrics.items())
    raise FloatingPointError(
        f"step {step} is not finite: {terms}; examples {first} to {first + batch_size - 1} (modulo their number); "
        f"last good checkpoint: {latest_checkpoint(run_dir) or 'none'}. Lower lr, or look at these examples"
    )


def run(
    config: LoopConfig,
    run_dir: Path,
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    *,
    label: str,
    validation: Validation | None = None,
    unit: int = 1,
    shown: tuple[str, ...] = (),
    on_log: OnLog | None = None,
    treatment: Treatment = ALIKE,
    by_layer: bool = True,
    samples_per_step: float = 0.0,
) -> Any:
    """Train `model` for `config.steps` steps, or the rest of them, and return it with averaged weights.

    Resumes from the newest checkpoint in `run_dir`, whatever the number of processes that wrote it. SIGTERM and SIGINT
    end the current step, save, and exit. With a `validation` the losses of its examples, by the averaged weights,
    which are those that will be saved, are logged too.
    `unit` steps belong together: checkpoints are written, and runs stop, only between units. The terminal shows the
    metrics named in `shown` (default: the losses); `on_log(step, metrics)`, where given, replaces it. `treatment` says
    which parameters have another learning rate or are not clipped. `by_layer` lets FSDP gather weights layer by layer;
    off, for losses that call the layers more or less often as the data require, and for all that sample, it gathers
    them for whole steps. `samples_per_step` are what a step draws itself, logged as `time/samples_per_s`. Use the model
    that is returned: under FSDP the one passed in holds shards from then on.

    Raises:
        ValueError: if checkpoint_every is not a multiple of `unit`, the batch cannot be shared by the processes in
            micro-batches of one size, the newest checkpoint is damaged, or the launcher asks for a kind of FSDP that is
            not supported.
        FloatingPointError: if a loss or gradient is not finite; the last good checkpoint is kept.
        OSError: if the disk has no room for the checkpoints.
    """
    if config.checkpoint_every % unit:
        raise ValueError(f"checkpoint_every ({config.checkpoint_every}) must be a multiple of {unit} (num_iterations)")
    plugin = sharding.requested()
    processes()
    AcceleratorState._reset_state()  # Accelerate keeps the last run's precision for the process; each run has its own
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with=list(config.trackers) or None,
        project_dir=run_dir,
        # Not every term of a loss exists in every batch. Buffers are averaged below, not overwritten by the first's.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    share_size(config, accelerator.num_processes)
    if config.precision == "bf16" and accelerator.is_main_process:
        warn_of_slow_bf16(accelerator.device, "train with --loop.precision fp32")
    accelerator.wait_for_everyone()  # the first makes the run's folder before it comes here
    accelerator.init_trackers(label)
    model.to(accelerator.device)
    if config.gradient_checkpointing:
        for part in model.modules():
            if isinstance(part, Backbone):
                part.recompute_layers()
    module, result = LossModule(model.train(), loss), model
    if plugin is not None and accelerator.num_processes > 1:
        result = sharding.shard(module, model, accelerator.device.type, plugin, by_layer, config.precision == "bf16")
    state = State(model, config.optim, treatment)
    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is not None:
        state.load(checkpoint)
    else:
        check_disk_space(run_dir, (config.keep_checkpoints + 1) * state.num_bytes())
    if accelerator.is_main_process:
        truncate_metrics(run_dir, state.step)
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1 and not isinstance(module, FSDPModule):
        module = accelerator.prepare(module)
    meter = Meter()
    progress = nullcontext(on_log) if on_log is not None else progress_bar(config, state.step, label, shown)
    with matmul_precision(config.precision), stop_signals() as stopped, progress as advance:
        while state.step < config.steps:
            lr = learning_rate(config.optim, state.step, config.steps)
            for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
                group["lr"] = lr * group["scale"]
            metrics = train_step(config, accelerator, module, state, batches, run_dir, unit, by_layer)
            state.average(ema_decay(config.optim, state.step))
            state.step += 1
            meter.steps.append({**metrics, "optim/lr": lr})
            is_last = state.step == config.steps
            due = validation if validation is not None and (state.step % validation.every == 0 or is_last) else None
            if state.step % config.log_every == 0 or is_last or due is not None:
                means = meter.take()
                if samples_per_step:
                    means["time/samples_per_s"] = samples_per_step / means["time/step_s"]
                if due is not None:
                    with state.averaged():
                        means |= held_out_metrics(config, accelerator, module, state.step, due, by_layer)
                    meter = Meter()
                if accelerator.is_main_process:
                    append_metrics(run_dir, state.step, means)
                    accelerator.log(means, step=state.step)
                    advance(state.step, means)
            stops = any_process(accelerator, bool(stopped)) and state.step % unit == 0
            if state.step % config.checkpoint_every == 0 or is_last or stops:
                state.save(run_dir, config.keep_checkpoints, writes=accelerator.is_main_process)
            if stops and not is_last:
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    print(
                        f"stopped at step {state.step} of {config.steps}; run the same command to go on",
                        file=sys.stderr,
                    )
                sys.exit(128 + (stopped[0] if stopped else signal.SIGTERM))
    for tracker in accelerator.trackers:  # end_training would end the process group too, and other stages may follow
        tracker.finish()
    finished = state.finish()
    return finished if result is model else sharding.fill(result, finished)


def train_step(
    config: LoopConfig,
    accelerator: Accelerator,
    module: nn.Module,
    state: State,
    batches: Batches,
    run_dir: Path,
    unit: int,
    by_layer: bool,
) -> dict[str, float]:
    """One optimizer step over all micro-batches of this process; returns the mean metrics."""
    share = share_size(config, accelerator.num_processes)
    first = share * accelerator.process_index
    starts = range(first, first + share, config.micro_batch_size)
    parts: list[dict[str, float]] = []
    delays_sync = accelerator.num_processes > 1 and not isinstance(module, FSDPModule)
    if isinstance(module, FSDPModule) and not by_layer:
        module.unshard()
    with accelerator.autocast():
        batches.prepare(state.step, Share(first, first + share, partial(summed, accelerator)))
    for start in starts:
        is_last = start + config.micro_batch_size >= first + share
        sync = accelerator.no_sync(module) if delays_sync and not is_last else nullcontext()
        with sync, accelerator.autocast():
            batch = batches.batch_at(state.step, start, min(start + config.micro_batch_size, first + share))
            value, metrics = module(batch, step_generator(config.seed, state.step, start))
        accelerator.backward(value / len(starts))
        parts.append({name: float(torch.as_tensor(x).detach()) for name, x in {"loss/total": value, **metrics}.items()})
    if isinstance(module, FSDPModule):
        sharding.average_gradients(module, state.model, by_layer)
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
        average_buffers(accelerator, state.model)
    sums = merged(parts)
    sums["optim/grad_norm"] = float(gradient_norm(state.trainable.values()))
    norm = gradient_norm(state.clipped)
    for kind in sharding.kinds(state.clipped):
        torch.nn.utils.clip_grads_with_norm_(kind, config.optim.max_grad_norm, norm)
    check_finite(sums, state.step, state.step // unit * config.batch_size, config.batch_size, run_dir)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return sums


@torch.no_grad()
def held_out_metrics(
    config: LoopConfig, accelerator: Accelerator, module: nn.Module, step: int, validation: Validation, by_layer: bool
) -> dict[str, float]:
    """The loss and its terms over the validation's examples; the noise of the loss is the same every time.

    Processes take equally many, so that they call sharded layers equally often; fewer examples than processes that are
    left over are left out.
    """
    share = max(1, validation.num_examples // accelerator.num_processes)
    first = min(share * accelerator.process_index, validation.num_examples - share)
    module.eval()
    if isinstance(module, FSDPModule) and not by_layer:
        module.unshard()
    parts: list[dict[str, float]] = []
    with accelerator.autocast():
        validation.batches.prepare(step, Share(first, first + share, partial(summed, accelerator)))
        for start in range(first, first + share, config.micro_batch_size):
            stop = min(start + config.micro_batch_size, first + share)
            batch = validation.batches.batch_at(step, start, stop)
            value, metrics = module(batch, step_generator(config.seed, 0, HELD_OUT + start))
            weight = (stop - start) / share
            parts.append({name: weight * float(x) for name, x in {"loss/total": value, **metrics}.items()})
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    module.train()
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
    names = {name for part in parts for name in part}
    total = {name: math.fsum(part.get(name, 0.0) for part in parts) for name in sorted(names)}
    return {f"validation/{name}": value / accelerator.num_processes for name, value in total.items()}


def merged(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of several micro-batches or steps as one: the mean of each over those that have it, and the largest
    of a name that ends in `_max`.
    """
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            values.setdefault(name, []).append(value)
    return {name: max(x) if name.endswith("_max") else math.fsum(x) / len(x) for name, x in values.items()}


def summed(accelerator: Accelerator, x: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    result: Any = accelerator.reduce(x, "sum")
    return result


def any_process(accelerator: Accelerator, claim: bool) -> bool:
    """Whether it is true in any process, the same answer in all."""
    if accelerator.num_processes == 1:
        return claim
    return bool(summed(accelerator, torch.tensor(float(claim), device=accelerator.device)) > 0)


def average_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Make running statistics, which each process took of its own examples, the same in all."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(summed(accelerator, buffer) / accelerator.num_processes)


@contextmanager
def progress_bar(config: LoopConfig, step: int, label: str, shown: tuple[str, ...]) -> Iterator[OnLog]:
    """A callback (step, metrics): moves a bar with time left on a terminal, prints plain lines elsewhere."""

    def terms(metrics: dict[str, float]) -> str:
        names = shown or tuple(name for name in metrics if name.startswith(("loss/", "vae/", "sft/")))
        titles = {name: name.split("/")[-1] for name in names} | {"validation/loss/total": "validation"}
        return "  ".join(f"{title} {metrics[name]:.4g}" for name, title in titles.items() if name in metrics)

    if not sys.stdout.isatty():

        def print_line(step: int, metrics: dict[str, float]) -> None:
            seconds = metrics["time/step_s"]
            left = (config.steps - step) * seconds / 60
            print(
                f"{label} {step}/{config.steps}  {terms(metrics)}  step_s {seconds:.3g}  {left:.1f} min left",
                flush=True,
            )

        yield print_line
        return
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(label, total=config.steps, completed=step, terms="")
        yield lambda step, metrics: bar.update(task, completed=step, terms=terms(metrics))
