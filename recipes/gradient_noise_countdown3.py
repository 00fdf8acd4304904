"""What the gradient of a step of stage 1 varies by: its 64 puzzles, or the times and the noise drawn for them.

    python recipes/gradient_noise_countdown3.py runs/cd3_whole/from_ar/final

Flow-loss gradients of 12 batches, each with 8 draws of one noisy copy a block, by the law of total variance. Copies are
independent given their batch, so R of them divide the second part by R. `variance` is of all weights together, in units
of the squared length of the mean gradient. Needs the latents of recipes/whole_countdown3.sh.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from gradient_agreement import gradient

from ladi.models.reasoner import LatentReasoner
from ladi.report import numbers_table, update_markdown
from ladi.rundir import provenance
from ladi.train.data import precompute_latents
from ladi.train.loop import Share, step_generator
from ladi.train.presets import cd3_tiny
from ladi.train.reasoner import Batch, LossConfig, batches_of, flow_loss

ROOT = Path("runs/cd3_whole")
NUM_BATCHES, NUM_DRAWS, FIRST = 12, 8, 5000


def drawn(reasoner: LatentReasoner, batch: Batch, config: LossConfig, generator: torch.Generator) -> torch.Tensor:
    """Gradient of the flow loss with one noisy copy a block."""
    clean = reasoner.read(batch.question, batch.context, batch.block_valid, batch.answer)
    return gradient(reasoner, flow_loss(reasoner, clean.blocks, batch, config, generator))


def parts(path: str) -> tuple[float, float]:
    """Variances between batches, and within one between draws, over the squared length of the mean."""
    stage = replace(cd3_tiny().reasoner, vae_dir=ROOT / "vae" / "final", latents_path=ROOT / "latents.safetensors")
    reasoner = LatentReasoner.from_pretrained(path).train()
    latents = precompute_latents(stage.vae_dir, stage.data, stage.latents_path, reasoner.config.max_blocks)
    batches = batches_of(reasoner, stage, stage.data.examples(stage.loop.batch_size, 0), latents)
    one_copy, size = replace(stage.loss, noise_draws=1), stage.loop.batch_size
    means, within = [], []
    for step in range(FIRST, FIRST + NUM_BATCHES):
        batches.prepare(step, Share(0, size, lambda x: x))
        batch = batches.batch_at(step, 0, size)
        gradients = torch.stack(
            [drawn(reasoner, batch, one_copy, step_generator(1, step, i)) for i in range(NUM_DRAWS)]
        )
        means.append(gradients.mean(0))
        within.append(gradients.var(0).sum())
    noise = torch.stack(within).mean()
    between = torch.stack(means).var(0).sum() - noise / NUM_DRAWS
    overall = torch.stack(means).mean(0).square().sum() - (between + noise / NUM_DRAWS) / NUM_BATCHES
    return float(between / overall), float(noise / overall)


if __name__ == "__main__":
    between, noise = parts(sys.argv[1])
    table = {
        f"{copies} copies": {
            "variance": between + noise / copies,
            "of the noise (%)": 100 * noise / copies / (between + noise / copies),
        }
        for copies in (1, 4, 16, 64)
    }
    command = f"python recipes/gradient_noise_countdown3.py {sys.argv[1]}"
    text = numbers_table(table, {**provenance(), "command": command})
    update_markdown(Path(__file__).parents[1] / "docs" / "results.md", "cd3_gradient_noise", text)
    print(text)
