"""Small models made on the spot: no network, no GPU."""

import pytest
import torch

from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.reasoner import LatentReasoner, ReasonerConfig
from ladi.models.vae import ThoughtVAE, ThoughtVAEConfig

ALPHABET = "0123456789+-*/=,:# \n"


def tiny_backbone(family: str = "qwen3") -> Backbone:
    config = BackboneConfig(family=family, width=32, num_layers=2, num_heads=2, mlp_width=64)
    return Backbone.from_config(config, ALPHABET).eval()


@pytest.fixture(params=["qwen3", "llama"])
def backbone(request) -> Backbone:
    return tiny_backbone(request.param)


@pytest.fixture
def vae(backbone) -> ThoughtVAE:
    config = ThoughtVAEConfig(num_latents=2, latent_width=4, decoder="full", max_block_tokens=12)
    return ThoughtVAE.from_backbone(config, backbone)


@pytest.fixture
def reasoner(backbone) -> LatentReasoner:
    """With random heads: a zero velocity head would hide every error."""
    config = ReasonerConfig(num_latents=2, latent_width=4, max_blocks=3, max_answer_tokens=8)
    model = LatentReasoner.from_backbone(config, backbone, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for head in (model.velocity_head, model.stop_head):
            head.weight.normal_(0, 0.3, generator=generator)
    return model.eval()


def stop_every_third(monkeypatch, reasoner):
    """Let every third trajectory stop after its first block, and the others go on to the last."""
    add_block = reasoner.add_block

    def stopping(prefix, z, running):
        grown, logit = add_block(prefix, z, running)
        return grown, torch.where(torch.arange(len(logit)) % 3 == 0, 1.0, -1.0)

    monkeypatch.setattr(reasoner, "add_block", stopping)
