"""The optimizer: AdamW or Muon, its learning rate, the average of the weights, and which parameters differ."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from ladi.arrays import Tensor
from ladi.train import sharding


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or Muon with warm-up, cosine decay, clipping and an average of the weights."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon`: the matrices of the transformer's layers are updated by Muon, with steps as long as AdamW's at the same
    `lr` (arXiv:2502.16982); everything else by AdamW."""
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    """Of matrices; vectors are not decayed."""
    warmup_steps: int = 100
    final_lr_fraction: float = 0.05
    """The learning rate at the last step, as a share of `lr`."""
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    """Of the average that is sampled from and saved; 0 keeps the last weights instead."""

    def __post_init__(self):
        if self.lr <= 0 or not 0 <= self.ema_decay < 1:
            raise ValueError(f"need lr > 0 and 0 <= ema_decay < 1, got {self.lr} and {self.ema_decay}")


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """lr at a step (from 0): linear warm-up to `lr`, then a cosine to `final_lr_fraction` of it at the last step."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, steps - 1 - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optim.lr * (optim.final_lr_fraction + (1 - optim.final_lr_fraction) * cosine)


def ema_decay(optim: OptimConfig, step: int) -> float:
    """Decay of the average at a step: short at first, so that the initial weights are soon forgotten."""
    return min(optim.ema_decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Treatment:
    """How some parameters differ from the rest, by their names."""

    lr_scale: Callable[[str], float] = lambda name: 1.0
    """Multiplies the learning rate."""
    is_clipped: Callable[[str], bool] = lambda name: True
    """Whether the parameter takes part in gradient clipping (its norm, and the scaling)."""


ALIKE = Treatment()
"""All parameters at the same rate, all clipped."""


class Float32OnCpu(TorchFunctionMode):
    """Within it, tensors on a CPU that ask for bf16 get a copy in fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.bfloat16 and args[0].device.type == "cpu":
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))


class Muon(torch.optim.Muon):
    """torch's, which multiplies matrices in bf16; on a CPU it does so here in fp32, since CPUs that have no such
    instructions take forty times as long over bf16.
    """

    def step(self, closure: Any = None) -> Any:
        with Float32OnCpu():
            return super().step(closure)


def make_optimizers(
    trainable: dict[str, nn.Parameter], optim: OptimConfig, treatment: Treatment
) -> list[torch.optim.Optimizer]:
    """AdamW, and with it Muon for the matrices of the transformer's layers if that is chosen.

    Every group carries its `scale`, which the loop multiplies the learning rate by.
    """
    groups: dict[tuple[bool, bool, float, bool], dict[str, Any]] = {}
    for name, parameter in trainable.items():
        is_matrix, scale = parameter.ndim >= 2, treatment.lr_scale(name)
        is_hidden = optim.name == "muon" and ".layers." in name and parameter.ndim == 2
        decay = optim.weight_decay if is_matrix else 0.0
        key = (is_hidden, is_matrix, scale, isinstance(parameter, DTensor))
        group = groups.setdefault(key, {"params": [], "weight_decay": decay, "scale": scale})
        group["params"].append(parameter)
    by_adamw = [group for (is_hidden, *_), group in groups.items() if not is_hidden]
    by_muon = [group for (is_hidden, *_), group in groups.items() if is_hidden]
    optimizers: list[torch.optim.Optimizer] = []
    if by_adamw:
        optimizers.append(torch.optim.AdamW(by_adamw, lr=optim.lr, betas=optim.betas))
    if by_muon:
        optimizers.append(Muon(by_muon, lr=optim.lr, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all their gradients together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [sharding.whole(torch.nn.utils.get_total_norm(kind)) for kind in sharding.kinds(gradients)]
    return norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms)
