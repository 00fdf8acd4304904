"""What a checkpoint of the loop holds, and how it is written and read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ladi.arrays import Tensor
from ladi.rundir import atomic_dir, checkpoint_dir, prune_checkpoints, seal_checkpoint, sealed_step
from ladi.train import sharding
from ladi.train.optim import OptimConfig, Treatment, make_optimizers


class State:
    """What a checkpoint holds: trainable weights and buffers, their average, the optimizer's moments, the step.

    Of a sharded model each process keeps its shards; checkpoints hold whole tensors either way.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, treatment: Treatment):
        self.model = model
        self.trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.ema = {n: p.detach().clone() for n, p in self.trainable.items()} if optim.ema_decay else {}
        self.optimizers = make_optimizers(self.trainable, optim, treatment)
        self.clipped = [p for n, p in self.trainable.items() if treatment.is_clipped(n)]
        self.step = 0

    def num_bytes(self) -> int:
        """Size of one checkpoint: weights, their average where it is kept, and two moments."""
        return (3 + bool(self.ema)) * sum(p.numel() * p.element_size() for p in self.trainable.values())

    @torch.no_grad()
    def save(self, run_dir: Path, keep: int, writes: bool = True) -> Path:
        """Write the checkpoint of `self.step`, whole or not at all, and drop the oldest.

        All processes call it, since whole tensors are gathered; one `writes`.
        """
        moments = {
            f"{key}/{name}": value
            for name, p in self.trainable.items()
            for optimizer in self.optimizers
            if p in optimizer.state
            for key, value in optimizer.state[p].items()
        }
        files = {"model": {**self.trainable, **dict(self.model.named_buffers())}, "ema": self.ema, "optimizer": moments}
        tensors: dict[str, dict[str, Tensor]] = {file: {} for file in files if file != "ema" or self.ema}
        for file, content in files.items():
            for name, tensor in content.items():
                one = sharding.whole(tensor.detach())
                if writes:
                    tensors[file][name] = one.to("cpu", copy=True).contiguous()
        final = checkpoint_dir(run_dir, self.step)
        if writes:
            with atomic_dir(final) as folder:
                for file, content in tensors.items():
                    save_file(content, folder / f"{file}.safetensors")
                seal_checkpoint(folder, self.step)
            prune_checkpoints(run_dir, keep)
        return final

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: if it is damaged.
        """
        self.step = sealed_step(folder)
        saved = load_file(folder / "model.safetensors")
        for name, tensor in {**self.trainable, **dict(self.model.named_buffers())}.items():
            tensor.copy_(sharding.share(saved[name], tensor))
        if self.ema:
            for name, tensor in load_file(folder / "ema.safetensors").items():
                self.ema[name].copy_(sharding.share(tensor, self.ema[name]))
        for key, tensor in load_file(folder / "optimizer.safetensors").items():
            kind, name = key.split("/", 1)
            parameter = self.trainable[name]
            state = owner(self.optimizers, parameter).state
            state[parameter][kind] = tensor if kind == "step" else sharding.share(tensor, parameter)

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the average towards the weights."""
        for name, average in self.ema.items():
            average.lerp_(self.trainable[name], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has the averaged weights, where they are kept."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.ema.items():
            now = self.trainable[name].detach().clone()
            self.trainable[name].copy_(average)
            average.copy_(now)

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """The model with the averaged weights, where they are kept."""
        for name, average in self.ema.items():
            self.trainable[name].copy_(average)
        return self.model


def owner(optimizers: list[torch.optim.Optimizer], parameter: nn.Parameter) -> torch.optim.Optimizer:
    """The optimizer that updates `parameter`."""
    return next(o for o in optimizers if any(parameter is p for group in o.param_groups for p in group["params"]))
