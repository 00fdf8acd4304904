"""Where evaluation, sampling and the encoding of latents run; training asks Accelerate itself (train/loop.py)."""

import torch
from accelerate import PartialState


def default_device() -> torch.device:
    """The accelerator that Accelerate picks for this process, as in training; the CPU where there is none.

    `CUDA_VISIBLE_DEVICES` chooses among several, `ACCELERATE_USE_CPU=1` none.
    """
    return torch.device(PartialState().device or "cpu")


def synchronize() -> None:
    """Wait until the accelerator, where there is one, has done what it was sent: before a clock is read."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
