"""FSDP2: weights, gradients, moments and averages shared out among processes, by torch's `fully_shard`.

`accelerate launch --use-fsdp --fsdp-version 2` asks for it. By layer, the units are the transformer's layers and the
root: a layer's weights are gathered for its forward pass and for its backward pass, by all processes together, which
must therefore call the layers equally often. Where that depends on the data (sampled texts end at different tokens),
the weights are gathered for a whole step instead, and gradients, moments and averages alone are shared out.

Weights that do not train, and are in no layer with some that do, stay replicated: a frozen VAE, DLR's main model.
"""

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from ladi.arrays import Tensor


def requested() -> FullyShardedDataParallelPlugin | None:
    """What `accelerate launch --use-fsdp` asks for by its environment variables; None without that flag.

    Raises:
        ValueError: if it asks for FSDP1, for weights in CPU memory, or for Accelerate's activation checkpointing.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    # All processes read all weights: transformers shall not leave them empty in all but one. The plugin tells it so.
    plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP is supported in its second version only: launch with --fsdp-version 2")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("FSDP keeps its shards on the device: launch without --fsdp-offload-params")
    if plugin.activation_checkpointing:
        raise ValueError(
            "Accelerate's activation checkpointing would append to cached keys twice: launch without "
            "--fsdp-activation-checkpointing and set --loop.gradient-checkpointing"
        )
    return plugin


def layers(module: nn.Module) -> list[nn.Module]:
    """The transformer's layers (members of a list named `layers`) of which something trains."""
    found = [m for name, m in module.named_modules() if name.split(".")[-2:-1] == ["layers"]]
    return [layer for layer in found if any(p.requires_grad for p in layer.parameters())]


def shard(
    module: nn.Module, model: nn.Module, device: str, plugin: FullyShardedDataParallelPlugin, by_layer: bool, bf16: bool
) -> nn.Module:
    """Share out, in place, the trainable weights of `model`, and those beside them in a layer; returns its structure
    without weights, for `fill`.

    The root unit is `module`, which holds the model: gathered when it is called, or by its `unshard`. Layers that are
    gathered one by one come in bf16 under bf16 autocast, which would else keep bf16 copies of its own; gradients are
    summed in fp32.
    """
    hollow = hollow_copy(model)
    units = layers(module) if by_layer else []
    inside = {p for unit in units for p in unit.parameters()}
    replicated = {p for p in model.parameters() if p.ndim == 0 or not (p.requires_grad or p in inside)}
    shared: dict[str, Any] = {
        "mesh": init_device_mesh(device, (distributed.get_world_size(),)),
        "ignored_params": replicated,
    }
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for unit in units:
        again = bool(plugin.reshard_after_forward)
        fully_shard(unit, reshard_after_forward=again, mp_policy=policy if bf16 else MixedPrecisionPolicy(), **shared)
    root: Any = fully_shard(module, reshard_after_forward=False, **shared)
    if not by_layer:
        root.set_requires_gradient_sync(False)
        root.set_reshard_after_backward(False)
    for parameter in set(hollow.parameters()) - set(model.parameters()):
        parameter.data = parameter.data.new_empty(0)
    return hollow


def hollow_copy(model: nn.Module) -> nn.Module:
    """A copy of the model's structure that shares all its weights, before they are sharded, which cannot be undone."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    for module in model.modules():  # a list may hide a frozen model from nn.Module
        memo |= {id(value): value for value in vars(module).values() if isinstance(value, list)}
    return copy.deepcopy(model, memo)


@torch.no_grad()
def fill(hollow: nn.Module, model: nn.Module) -> nn.Module:
    """An ordinary model again: what `shard` returned, with the present weights and buffers of the sharded `model`."""
    for (_, empty), (_, parameter) in zip(hollow.named_parameters(), model.named_parameters(), strict=True):
        empty.data = whole(parameter.data)
    for (_, old), (_, buffer) in zip(hollow.named_buffers(), model.named_buffers(), strict=True):
        old.copy_(buffer)
    return hollow


def whole(x: Tensor) -> Tensor:
    """The tensor that `x` is a shard of, which all processes ask for together; `x` itself if it is none."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def share(x: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, cut as `like` is; `x` itself if that is not sharded."""
    if not isinstance(like, DTensor):
        return x.to(like.device)
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def kinds(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Sharded and whole tensors apart, which torch's fused operations cannot mix."""
    parts = [[x for x in tensors if isinstance(x, DTensor) is sharded] for sharded in (True, False)]
    return [part for part in parts if part]


@torch.no_grad()
def average_gradients(root: FSDPModule, model: nn.Module, by_layer: bool) -> None:
    """Leave in every process its shard of the gradients' mean over processes, and its shard of the weights.

    By layer, the backward pass has done so, but for replicated numbers. A weight that no process used has no gradient.
    """
    found = {} if by_layer else {name: p.grad for name, p in model.named_parameters()}
    if not by_layer:
        model.zero_grad()
        root.reshard()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if by_layer:
        trainable = {name: p for name, p in trainable.items() if not isinstance(p, DTensor)}
        found = {name: p.grad for name, p in trainable.items()}
    if not trainable:
        return
    device = next(iter(trainable.values())).device
    is_used = torch.tensor([found[name] is not None for name in trainable], dtype=torch.int32, device=device)
    distributed.all_reduce(is_used)
    for (name, parameter), used in zip(trainable.items(), is_used.tolist(), strict=True):
        if used:
            gradient = found.pop(name)
            gradient = torch.zeros(parameter.shape, device=device) if gradient is None else gradient
            parameter.grad = mean_over_processes(gradient, parameter)


def mean_over_processes(x: Tensor, like: Tensor) -> Tensor:
    """The mean of every process's `x`, cut as `like` is."""
    if not isinstance(like, DTensor):
        distributed.all_reduce(x)
        return x / distributed.get_world_size()
    partial = DTensor.from_local(x, like.device_mesh, [Partial()], run_check=False)
    return partial.redistribute(placements=like.placements) / distributed.get_world_size()
