"""Blocks read by the VAE: a decoder that reads the context gets the question and the texts of the earlier blocks."""

import pytest
import torch

from ladi.inference.models import vae_texts
from ladi.inference.sample import denoising_texts, frames
from ladi.models.generation import Generation
from ladi.models.reasoner import LatentReasoner, ReasonerConfig
from ladi.models.vae import ThoughtVAE, ThoughtVAEConfig
from tests.conftest import tiny_backbone

QUESTIONS = ["1,2,3:6", "10,20,30:60"]


@pytest.fixture
def reasoner() -> LatentReasoner:
    """Its VAE writes different texts for different latents and contexts."""
    config = ThoughtVAEConfig(num_latents=2, latent_width=4, decoder="full", max_block_tokens=6, reads_context=True)
    vae = ThoughtVAE.from_backbone(config, tiny_backbone())
    with torch.no_grad():
        vae.from_latent.weight.mul_(5)
        for name, weight in vae.decoder.named_parameters():
            if "layers" in name and weight.ndim == 2:
                weight.mul_(8)
    shape = ReasonerConfig(num_latents=2, latent_width=4, max_blocks=3)
    return LatentReasoner.from_backbone(shape, tiny_backbone(), vae).eval()


def one_by_one(reasoner, question, latents) -> list[str]:
    """Each block decoded alone, after a context that is spelled out here."""
    texts: list[str] = []
    for z in latents:
        context = question + "\n" + "".join(text + "\n" for text in texts)
        texts += reasoner.vae.decode(reasoner.vae.scale.restore(z)[None], [context])
    return texts


def test_blocks_are_read_after_the_question_and_what_was_read_before(reasoner):
    latents = torch.randn(2, 3, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    num_blocks = torch.tensor([[3, 1, 2], [2, 3, 1]])
    found, _ = vae_texts(reasoner, QUESTIONS, latents, num_blocks, "|")
    for i, question in enumerate(QUESTIONS):
        for j in range(3):
            blocks = one_by_one(reasoner, question, latents[i, j])[: num_blocks[i, j]]
            assert found[i][j] == "|".join(blocks)
    swapped, _ = vae_texts(reasoner, QUESTIONS[::-1], latents, num_blocks, "|")
    assert swapped != found


def test_shown_blocks_end_as_the_vae_reads_them(reasoner):
    states = torch.randn(1, 1, 3, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(1, 0, 5)
    latents, num_blocks = states[:, :, :, -1], torch.tensor([[2]])
    out = Generation([["text"]], latents, num_blocks, states, times, 0)
    shown = denoising_texts(reasoner, QUESTIONS[0], out, 0, 0)
    assert len(shown) == len(frames(times))
    assert shown[-1] == one_by_one(reasoner, QUESTIONS[0], latents[0, 0, :2])
