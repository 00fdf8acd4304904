"""The latent reasoner: a language model that denoises blocks of thought and writes the answer (LaDiR, section 3.2).

Clean sequence, `<time>` being a position left free for the noisy form of the block:

    question <bot> <time> z_1 .. z_N <eot>  <bot> <time> z_1 .. z_N <eot>  ...  <soa> answer <eos>

A noisy block `[time] z_t` is read after its own `<bot>`, at the positions of its finished form; it sees the
question and the clean earlier blocks only. Keys and values of the clean sequence are computed once (`read`), and
every velocity, in training as in sampling, comes from `velocity(context, x_t, t)` over R noisy copies that share them.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.bundled import located
from ladi.draws import Streams
from ladi.models.backbone import Backbone, KeyValues
from ladi.models.decoding import Prefix, append
from ladi.models.generation import Generation, SampleConfig, generate
from ladi.models.mask import block_causal_mask, noisy_copies_mask
from ladi.models.vae import ThoughtVAE, load_heads, read_config


@dataclass(frozen=True, kw_only=True)
class ReasonerConfig:
    """Shape of what the reasoner denoises; N and D must be the VAE's."""

    num_latents: int
    latent_width: int
    max_blocks: int
    """Most blocks of thought per question."""
    max_answer_tokens: int = 64
    time_scale: float = 1000.0
    """Multiplies t in [0, 1] before the sinusoidal embedding."""


@dataclass(frozen=True)
class Context:
    """What noisy copies may see: a cache of S clean tokens, per copy a view of it, and where the copy stands.

    With a second axis of 1 in `visible` and `position`, all R copies share one view.
    """

    past: KeyValues
    visible: Bool[Tensor, "B R S"]
    position: Int[Tensor, "B R"]

    def repeat(self, copies: int) -> "Context":
        """The same context for `copies` neighbouring noisy copies of each view."""
        visible, position = (x.repeat_interleave(copies, dim=1) for x in (self.visible, self.position))
        return Context(self.past, visible, position)

    def rows(self, rows: slice) -> "Context":
        """The contexts of some of the B rows."""
        past = tuple((keys[rows], values[rows]) for keys, values in self.past)
        return Context(past, self.visible[rows], self.position[rows])


@dataclass(frozen=True)
class CleanPass:
    """One pass over the clean sequence: contexts of all K blocks, and logits at the answer and at each `<eot>`."""

    blocks: Context
    stop_logits: Float[Tensor, "B K"]
    answer_logits: Float[Tensor, "B A V"]


class TimeEmbedding(nn.Module):
    """t in [0, 1] -> a token: sinusoidal features, then a two-layer perceptron."""

    def __init__(self, width: int, scale: float, num_features: int = 128):
        super().__init__()
        self.scale, self.num_features = scale, num_features
        self.mlp = nn.Sequential(nn.Linear(num_features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch C"]:
        half = self.num_features // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
        angles = self.scale * t.float()[..., None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class LatentReasoner(nn.Module):
    """Language model with a latent input, a velocity head and a stop head; latents are standardised throughout.

    `vae`, where present, is the VAE of these latents, or the folder from which it is loaded when it is first asked for:
    it decodes blocks to text and is saved with the reasoner, but its weights are no parameters of the reasoner.
    """

    def __init__(self, config: ReasonerConfig, backbone: Backbone, vae: ThoughtVAE | Path | None = None):
        super().__init__()
        self.config, self.backbone = config, backbone
        width = backbone.width
        self.latent_in = nn.Linear(config.latent_width, width)
        self.time = TimeEmbedding(width, config.time_scale)
        self.velocity_head = nn.Linear(width, config.latent_width)
        self.stop_head = nn.Linear(width, 1)
        self.null_question = nn.Parameter(torch.empty(width))
        self._vae: list[ThoughtVAE | Path | None] = [vae]  # a list hides it from nn.Module

    @property
    def vae(self) -> ThoughtVAE:
        """The VAE, on the device of the reasoner.

        Raises:
            ValueError: if the reasoner has none.
        """
        if self._vae[0] is None:
            raise ValueError("this reasoner was loaded without its VAE, which is needed to decode blocks to text")
        if isinstance(self._vae[0], Path):
            self._vae[0] = ThoughtVAE.from_pretrained(self._vae[0])
        return self._vae[0].to(self.backbone.device)

    @classmethod
    def from_backbone(
        cls, config: ReasonerConfig, backbone: Backbone, vae: ThoughtVAE | Path | None, seed: int = 0
    ) -> "LatentReasoner":
        """A reasoner that starts from `backbone` (not copied) with an untrained latent input and zero velocity."""
        reasoner = cls(config, backbone, vae)
        reasoner.init_weights(torch.Generator().manual_seed(seed))
        return reasoner

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Everything but the backbone; the velocity and stop heads start at zero."""
        for layer in (self.latent_in, *(m for m in self.time.mlp if isinstance(m, nn.Linear))):
            layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
        for head in (self.velocity_head, self.stop_head):
            head.weight.zero_()
            head.bias.zero_()
        self.null_question.normal_(0, 0.02, generator=generator)

    # ---- the compute primitive -------------------------------------------------------------------------------

    def velocity(
        self, context: Context, x_t: Float[Tensor, "B R N D"], t: Float[Tensor, "B R"]
    ) -> Float[Tensor, "B R N D"]:
        """v_theta(x_t, t) of R noisy copies per row, all read after one cached context; fp32.

        Copies do not see one another, so the result equals R passes with one copy each.
        """
        batch, copies, num_latents, _ = x_t.shape
        latents = self.latent_in(x_t.to(self.latent_in.weight.dtype))
        embeds = torch.cat([self.time(t)[:, :, None], latents], dim=2).flatten(1, 2)
        mask = noisy_copies_mask(context.visible.expand(batch, copies, -1), num_latents + 1)
        offsets = torch.arange(num_latents + 1, device=x_t.device)
        positions = (context.position.expand(batch, copies)[:, :, None] + offsets).flatten(1, 2)
        hidden, _ = self.backbone.hidden(embeds, mask, positions, context.past)
        hidden = hidden.unflatten(1, (copies, num_latents + 1))[:, :, 1:]
        return self.velocity_head(hidden).float()

    # ---- the clean sequence ----------------------------------------------------------------------------------

    def embed_question(
        self, ids: Int[Tensor, "B T"], dropped: Bool[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Question embeddings; every token of a `dropped` question is the learned null."""
        embeds = self.backbone.embed(ids)
        if dropped is None:
            return embeds
        return torch.where(dropped[:, None, None], self.null_question.to(embeds.dtype), embeds)

    def _token(self, token_id: int, *batch: int) -> Float[Tensor, "*batch C"]:
        return self.backbone.embed(torch.full(batch, token_id, device=self.backbone.device))

    def read(
        self,
        question: tuple[Int[Tensor, "B Q"], Bool[Tensor, "B Q"]],
        blocks: Float[Tensor, "B K N D"],
        block_valid: Bool[Tensor, "B K"],
        answer: tuple[Int[Tensor, "B A"], Bool[Tensor, "B A"]],
        dropped: Bool[Tensor, " B"] | None = None,
        hidden_from_answer: Bool[Tensor, " B"] | None = None,
    ) -> CleanPass:
        """Teacher-forced pass over question, clean blocks and answer (the training form of the sequence).

        `block_valid` marks a row's real blocks, which come first. Rows named in `hidden_from_answer` write the answer
        without seeing the question, so that their latents must carry the reasoning.
        """
        batch, num_blocks, num_latents, _ = blocks.shape
        ids, question_valid = question
        num_question, block_len = ids.shape[1], num_latents + 2
        latents = self.latent_in(blocks.to(self.latent_in.weight.dtype))
        bot, eot = (self._token(i, batch, num_blocks, 1) for i in (self.backbone.bot, self.backbone.eot))
        thought = torch.cat([bot, latents, eot], dim=2).flatten(1, 2)
        answer_in = torch.cat([self._token(self.backbone.soa, batch, 1), self.backbone.embed(answer[0][:, :-1])], 1)
        embeds = torch.cat([self.embed_question(ids, dropped), thought, answer_in], dim=1)

        answer_valid = torch.cat([question_valid.new_ones(batch, 1), answer[1][:, :-1]], dim=1)
        thought_valid = block_valid.repeat_interleave(block_len, dim=1)
        valid = torch.cat([question_valid, thought_valid, answer_valid], dim=1)
        # A block of N latents takes N + 3 positions: <bot>, the time token's place, the latents, <eot>.
        steps = torch.ones(block_len, dtype=torch.long, device=ids.device)
        steps[1] = 2
        advance = valid.long()
        advance[:, num_question : num_question + thought_valid.shape[1]] *= steps.repeat(num_blocks)
        positions = (advance.cumsum(1) - 1).clamp(min=0)

        number = torch.full((block_len,), -1, device=ids.device).repeat(num_blocks, 1)
        number[:, 1:-1] = torch.arange(num_blocks, device=ids.device)[:, None]
        plain = torch.full((batch, valid.shape[1]), -1, device=ids.device)
        plain[:, num_question : num_question + num_blocks * block_len] = number.flatten()
        mask = block_causal_mask(plain, valid)
        answer_start = num_question + num_blocks * block_len
        if hidden_from_answer is not None:
            mask[:, answer_start:, :num_question] &= ~hidden_from_answer[:, None, None]

        hidden, past = self.backbone.hidden(embeds, mask, positions)
        bot_index = num_question + block_len * torch.arange(num_blocks, device=ids.device)
        token = torch.arange(valid.shape[1], device=ids.device)
        visible = (token <= bot_index[:, None])[None] & valid[:, None, :]
        return CleanPass(
            blocks=Context(past, visible, positions[:, bot_index] + 1),
            stop_logits=self.stop_head(hidden[:, bot_index + block_len - 1]).squeeze(-1).float(),
            answer_logits=self.backbone.logits(hidden[:, answer_start:]),
        )

    # ---- the same sequence, grown piece by piece (sampling and stage 2) -----------------------------------------

    def open(
        self,
        question: tuple[Int[Tensor, "B Q"], Bool[Tensor, "B Q"]],
        dropped: Bool[Tensor, " B"] | None = None,
    ) -> Prefix:
        """The cached prefix `question <bot>`."""
        ids, valid = question
        embeds = torch.cat([self.embed_question(ids, dropped), self._token(self.backbone.bot, len(ids), 1)], dim=1)
        return append(self.backbone, None, embeds, torch.cat([valid, valid.new_ones(len(ids), 1)], dim=1))[0]

    def add_block(
        self, prefix: Prefix, z: Float[Tensor, "B N D"], running: Bool[Tensor, " B"]
    ) -> tuple[Prefix, Float[Tensor, " B"]]:
        """The prefix with `z <eot> <bot>` after its open `<bot>`, and the logit at `<eot>` that thinking stops here.

        In rows that are not `running` the block is padding: the sequence stays as it was.
        """
        batch, num_latents, _ = z.shape
        latents = self.latent_in(z.to(self.latent_in.weight.dtype))
        ends = torch.cat([self._token(i, batch, 1) for i in (self.backbone.eot, self.backbone.bot)], dim=1)
        embeds = torch.cat([latents, ends], dim=1)
        length = num_latents + 2
        block = torch.full((batch, length), -1, device=z.device)
        block[:, :num_latents] = 0
        valid = running[:, None].expand(batch, length)
        own = block_causal_mask(block, valid)
        mask = torch.cat([prefix.valid[:, None, :].expand(-1, length, -1), own], dim=-1)
        offsets = torch.arange(length, device=z.device) + 1  # + 1: the time token's place stays free
        hidden, past = self.backbone.hidden(embeds, mask, prefix.position[:, None] + offsets, prefix.past)
        position = prefix.position + (length + 1) * running
        grown = Prefix(past, torch.cat([prefix.valid, valid], dim=1), position, hidden[:, -1])
        return grown, self.stop_head(hidden[:, num_latents]).squeeze(-1).float()

    def close(self, prefix: Prefix) -> Prefix:
        """The prefix with its last, still open `<bot>` hidden and `<soa>` appended: the answer comes next."""
        valid = prefix.valid.clone()
        last = valid.shape[1] - 1 - valid.flip(1).long().argmax(1)  # the last real token of each row
        valid[torch.arange(len(valid), device=valid.device), last] = False
        before = Prefix(prefix.past, valid, prefix.position - 1, prefix.hidden)
        soa = self._token(self.backbone.soa, len(valid), 1)
        return append(self.backbone, before, soa, valid.new_ones(len(valid), 1))[0]

    def context(self, prefix: Prefix) -> Context:
        """What noisy copies of the next block may see after a prefix that ends with an open `<bot>`."""
        return Context(prefix.past, prefix.valid[:, None], prefix.position[:, None])

    def generate(
        self,
        questions: Sequence[str],
        *,
        num_latents: int = 1,
        num_steps: int = 30,
        guidance: float = 0.0,
        temperature: float = 0.0,
        seed: int = 0,
        **settings: Any,
    ) -> Generation:
        """Texts, latents and denoising trajectories: `num_latents` independent lines of thought per question.

        `guidance` is the strength of the repulsion between them; `settings` are the other fields of `SampleConfig`.
        """
        config = SampleConfig(num_steps=num_steps, guidance=guidance, temperature=temperature, **settings)
        return generate(self, questions, num_latents, config, Streams.of(seed, range(len(questions))))

    # ---- files -----------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, backbone/ (Hugging Face layout), the heads as safetensors, and vae/ where there is one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(folder / "backbone")
        heads = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("backbone.")}
        save_file(heads, folder / "heads.safetensors")
        vae, place = self._vae[0], folder / "vae"
        if isinstance(vae, ThoughtVAE):
            vae.save_pretrained(place)
        elif vae is not None and vae.resolve() != place.resolve():
            shutil.copytree(vae, place, dirs_exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model": "LatentReasoner", **asdict(self.config)}, indent=2))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LatentReasoner":
        """Load what `save_pretrained` wrote, ready for inference; the VAE from `vae/` in the folder or beside it.

        `assets/...` names a bundled one.

        Raises:
            ValueError: if the folder holds no LatentReasoner.
        """
        folder = Path(located(folder))
        config = read_config(folder, "LatentReasoner")
        places = [place for place in (folder / "vae", folder.parent / "vae") if (place / "heads.safetensors").is_file()]
        vae = places[0] if places else None
        reasoner = cls(ReasonerConfig(**config), Backbone.from_pretrained(folder / "backbone"), vae)
        load_heads(reasoner, folder, ("backbone.",))
        return reasoner.eval()
