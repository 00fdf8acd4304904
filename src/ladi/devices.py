"""Which processes there are, and where evaluation, sampling and the encoding of latents run; training asks Accelerate
itself (train/loop.py).
"""

import logging
import os
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

logger = logging.getLogger(__name__)

PATIENCE = timedelta(hours=12)
"""How long processes wait for one another: the first may encode a large data set alone."""


def processes() -> PartialState:
    """The processes that a launcher started together, or this one alone.

    Raises:
        ValueError: if a launcher started several and Accelerate, which looks for GPUs, takes this one to be alone.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and state.num_processes == 1:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE), but there is no accelerator to share among them; set "
            "ACCELERATE_USE_CPU=1 to train on CPUs, or start one"
        )
    return state


def default_device() -> torch.device:
    """The accelerator that Accelerate picks for this process, as in training; the CPU where there is none.

    `CUDA_VISIBLE_DEVICES` chooses among several, `ACCELERATE_USE_CPU=1` none.
    """
    return torch.device(processes().device or "cpu")


def cpu_has_bf16() -> bool:
    """Whether torch multiplies bf16 matrices with instructions of this CPU; without, they take many times as long as in
    fp32 (fifty on AVX2).
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def warn_of_slow_bf16(device: torch.device, remedy: str) -> None:
    """Log a warning if matrices are about to be multiplied in bf16 on a CPU that has no instructions for it."""
    if device.type == "cpu" and not cpu_has_bf16():
        logger.warning("this CPU has no bf16 instructions: bf16 takes many times as long as fp32 here; %s", remedy)


def synchronize() -> None:
    """Wait until the accelerator, where there is one, has done what it was sent: before a clock is read."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
