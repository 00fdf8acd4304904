"""Which processes there are, and where evaluation, sampling and the encoding of latents run; training asks Accelerate
itself (train/loop.py).
"""

from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(hours=12)
"""How long processes wait for one another: the first may encode a large data set alone."""


def processes() -> PartialState:
    """The processes that a launcher started together, or this one alone."""
    return PartialState(timeout=PATIENCE)


def default_device() -> torch.device:
    """The accelerator that Accelerate picks for this process, as in training; the CPU where there is none.

    `CUDA_VISIBLE_DEVICES` chooses among several, `ACCELERATE_USE_CPU=1` none.
    """
    return torch.device(processes().device or "cpu")


def synchronize() -> None:
    """Wait until the accelerator, where there is one, has done what it was sent: before a clock is read."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
