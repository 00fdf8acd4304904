"""Latent diffusion reasoning for language models (LaDiR).

The models are imported when they are first asked for, so that `ladi.tasks` and `ladi.report` need no torch.
"""

from importlib import import_module
from typing import Any

HOMES = {
    "AssistantConfig": "ladi.models.assistant",
    "Backbone": "ladi.models.backbone",
    "BackboneConfig": "ladi.models.backbone",
    "LatentAssistant": "ladi.models.assistant",
    "LatentReasoner": "ladi.models.reasoner",
    "ReasonerConfig": "ladi.models.reasoner",
    "ThoughtVAE": "ladi.models.vae",
    "ThoughtVAEConfig": "ladi.models.vae",
}
__all__ = list(HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'ladi' has no attribute {name!r}")
