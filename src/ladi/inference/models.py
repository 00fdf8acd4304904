"""Models as evaluation sees them: loaded by what their folder says, asked for texts, or for latents and their texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ladi.arrays import Float, Int, Tensor
from ladi.bundled import located
from ladi.devices import default_device, warn_of_slow_bf16
from ladi.draws import Source
from ladi.models.assistant import LatentAssistant, MainCost
from ladi.models.backbone import Backbone, Dtype
from ladi.models.decoding import continue_text, open_question
from ladi.models.generation import SampleConfig, answer, generate_latents
from ladi.models.reasoner import LatentReasoner
from ladi.tasks.blocks import before_block

Model = Backbone | LatentReasoner | LatentAssistant


def load_model(folder: str | Path, dtype: Dtype = "float32", main: str = "") -> Model:
    """The saved reasoner, assistant or language model at `folder` (or `assets/...`), on the accelerator where there is
    one, ready for inference.

    `main` says where an assistant's main model lies now; by default where it lay at training.

    Raises:
        ValueError: if there is none, or it has no main model and `main` names one.
    """
    path = Path(located(folder)) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a saved model: it has no config.json (a stage saves one under final/)")
    kind = json.loads(path.read_text()).get("model")
    if main and kind != "LatentAssistant":
        raise ValueError(f"{folder} is not an assistant and has no main model: leave main ({main}) out")
    model: Model
    if kind == "LatentAssistant":
        model = LatentAssistant.from_pretrained(folder, main)
    elif kind == "LatentReasoner":
        model = LatentReasoner.from_pretrained(folder)
    else:
        model = Backbone.from_pretrained(folder)
    if dtype == "bfloat16":
        warn_of_slow_bf16(default_device(), "use --dtype float32")
    return model.to(default_device(), getattr(torch, dtype)).eval()


@torch.no_grad()
def sample_ar(
    backbone: Backbone,
    questions: Sequence[str],
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    generator: Source,
) -> tuple[list[list[str]], int]:
    """Texts of a token-level model, `num_samples` for each question, and tokens processed."""
    prefix = open_question(backbone, questions, backbone.soa)
    texts, decoded = continue_text(backbone, prefix, max_new_tokens, temperature, generator, num_samples)
    grouped = [texts[i * num_samples : (i + 1) * num_samples] for i in range(len(questions))]
    return grouped, decoded + prefix.valid.numel()


def vae_texts(
    reasoner: LatentReasoner, questions: Sequence[str], latents: Tensor, num_blocks: Tensor, separator: str
) -> tuple[list[list[str]], int]:
    """The blocks (B, R, K, N, D) of each trajectory as the VAE decoder reads them, joined to one text, and tokens
    processed.
    """
    num_latents, most_blocks = latents.shape[1:3]
    asked = [question for question in questions for _ in range(num_latents)]
    raw = reasoner.vae.scale.restore(latents).flatten(0, 1)
    blocks: list[list[str]] = [[] for _ in asked]
    processed = 0
    for k in range(most_blocks):
        before = [before_block(question, earlier) for question, earlier in zip(asked, blocks, strict=True)]
        read, tokens = reasoner.vae.decode_counted(raw[:, k], before)
        processed += tokens
        for earlier, text in zip(blocks, read, strict=True):
            earlier.append(text)
    texts = [separator.join(row[:n]) for row, n in zip(blocks, num_blocks.flatten().tolist(), strict=True)]
    return [texts[i * num_latents : (i + 1) * num_latents] for i in range(len(questions))], processed


@dataclass(frozen=True)
class Drawn:
    """Latents of B questions, R trajectories each. A trajectory of an assistant is one block of N = T latents."""

    latents: Float[Tensor, "B R K N D"]
    num_blocks: Int[Tensor, "B R"]
    tokens_processed: int


def draw(
    model: LatentReasoner | LatentAssistant,
    questions: Sequence[str],
    num_latents: int,
    config: SampleConfig,
    generator: Source,
) -> Drawn:
    """Trajectories of each question; an assistant takes `initial_noise` as the scale of its policy's noise."""
    if isinstance(model, LatentReasoner):
        paths = generate_latents(model, questions, num_latents, config, generator)
        return Drawn(paths.latents, paths.num_blocks, paths.tokens_processed)
    latents = model.think(questions, num_latents, generator, config.initial_noise)
    opened = model.policy.backbone.tokenize(questions, opening=True)[0].numel() + len(questions)
    tokens = opened + len(questions) * num_latents * (model.config.num_latents - 1)
    return Drawn(latents[:, :, None], torch.ones(latents.shape[:2], dtype=torch.long), tokens)


def read(
    model: LatentReasoner | LatentAssistant,
    questions: Sequence[str],
    drawn: Drawn,
    temperature: float,
    generator: Source,
    texts_per_latent: int = 1,
) -> tuple[list[list[str]], int, MainCost]:
    """Texts that the latents lead to, grouped by question; tokens processed; and the main model's part of them."""
    if isinstance(model, LatentReasoner):
        texts, processed = answer(
            model, questions, drawn.latents, drawn.num_blocks, temperature, generator, texts_per_latent
        )
        return texts, processed, MainCost()
    out, cost = model.decode(questions, drawn.latents[:, :, 0], None, temperature, generator, texts_per_latent)
    texts, group = model.main.detokenize(out.ids), drawn.latents.shape[1] * texts_per_latent
    return [texts[i * group : (i + 1) * group] for i in range(len(questions))], cost.tokens, cost
