"""The thought VAE: a block of reasoning text <-> a block of latents (LaDiR, arXiv:2510.04573, section 3.1).

    encoder: language model over `[text][N learned embeddings]`; last hidden states there -> mean and log-variance
    decoder: language model over `[projected latents][text]`, teacher forced; it sees one block alone

Where it `reads_context`, the question and the earlier blocks stand before the text in both, and the latents carry
what those leave open (a conditional VAE).

Latents handed to other stages are standardised with the mean and standard deviation of the posterior over the
training set, which are stored here: `scale` converts.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.bundled import located
from ladi.losses import gaussian_kl_to_standard, token_cross_entropy
from ladi.models.backbone import Backbone
from ladi.models.decoding import append, continue_text
from ladi.tasks.blocks import Block


@dataclass(frozen=True, kw_only=True)
class ThoughtVAEConfig:
    """Shape of the latent space and the VAE's loss."""

    num_latents: int = 4
    """N: latents per block."""
    latent_width: int = 16
    """D: numbers per latent."""
    block: Literal["step", "whole"] = "step"
    """One block per step (sentence) of the chain of thought, or one for all of it."""
    reads_context: bool = False
    """Encoder and decoder also read the question and the earlier blocks; the papers' read one block alone."""
    decoder: Literal["frozen", "lora", "full"] = "frozen"
    """What of the decoder trains. The papers freeze it; a tiny LM trained from scratch reconstructs worse then."""
    lora_rank: int = 16
    beta: float = 1e-5
    """Weight of the KL term, summed over latents and channels, beside the cross-entropy summed over tokens."""
    latent_noise: float = 0.0
    """k: added noise has k times the running standard deviation of the latents."""
    token_corruption: float = 0.0
    """Probability that an input token of the encoder is replaced by a random one."""
    max_block_tokens: int = 64
    """Longest text the decoder writes for one block."""

    def __post_init__(self):
        if self.num_latents < 1 or self.latent_width < 1:
            raise ValueError(f"need at least 1 latent of width 1, got {self.num_latents} x {self.latent_width}")
        if not 0 <= self.token_corruption < 1:
            raise ValueError(f"token_corruption is a probability below 1, got {self.token_corruption}")


class Posterior(NamedTuple):
    """q(z | text) = N(mean, exp(log_var)), independent over latents and channels; fp32."""

    mean: Float[Tensor, "*batch N D"]
    log_var: Float[Tensor, "*batch N D"]

    def sample(self, generator: torch.Generator) -> Float[Tensor, "*batch N D"]:
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean.device)
        return self.mean + (0.5 * self.log_var).exp() * noise


class LatentScale(NamedTuple):
    """Mean and standard deviation of raw latents over the training set, per latent and channel."""

    mean: Float[Tensor, "N D"]
    std: Float[Tensor, "N D"]

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LatentScale":
        """That of a saved VAE, whose weights are not loaded.

        Raises:
            ValueError: if the folder holds no ThoughtVAE.
        """
        folder = Path(located(folder))
        read_config(folder, "ThoughtVAE")
        with safe_open(folder / "heads.safetensors", "pt") as file:
            return cls(file.get_tensor("latent_mean"), file.get_tensor("latent_std"))

    def standardise(self, z: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch N D"]:
        """Raw latents -> mean 0, std 1 over the training set."""
        return (z - self.mean.to(z.device)) / self.std.to(z.device)

    def restore(self, z: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch N D"]:
        """Standardised latents -> raw latents."""
        return z * self.std.to(z.device) + self.mean.to(z.device)


def read_posterior(
    encoder: Backbone,
    parts: Sequence[tuple[Int[Tensor, "B _"], Bool[Tensor, "B _"]]],
    queries: Float[Tensor, "N C"],
    to_posterior: nn.Module,
) -> Posterior:
    """Mean and log-variance (B, N, D) of latents from the last states of N learned `queries` behind texts, which come
    in `parts` of token ids and which of them are real.
    """
    asking = queries.expand(len(parts[0][0]), -1, -1)
    embeds = torch.cat([*(encoder.embed(ids) for ids, _ in parts), asking], dim=1)
    valid = torch.cat([*(real for _, real in parts), parts[0][1].new_ones(asking.shape[:2])], dim=1)
    _, hidden = append(encoder, None, embeds, valid)
    mean, log_var = to_posterior(hidden[:, -len(queries) :]).float().chunk(2, dim=-1)
    return Posterior(mean, log_var.clamp(-12, 4))


@dataclass(frozen=True)
class BlockTokens:
    """Token ids of M blocks and which of them are real; the same of what stands before each, S = 0 where not read."""

    ids: Int[Tensor, "M T"]
    valid: Bool[Tensor, "M T"]
    before_ids: Int[Tensor, "M S"]
    before_valid: Bool[Tensor, "M S"]


class ThoughtVAE(nn.Module):
    """Encoder and decoder of blocks of thought; build one with `from_backbone` or `from_pretrained`."""

    latent_mean: Tensor
    latent_std: Tensor
    running_std: Tensor

    def __init__(self, config: ThoughtVAEConfig, encoder: Backbone, decoder: Backbone):
        super().__init__()
        self.config, self.encoder, self.decoder = config, encoder, decoder
        shape = (config.num_latents, config.latent_width)
        self.queries = nn.Parameter(torch.empty(config.num_latents, encoder.width))
        self.to_posterior = nn.Linear(encoder.width, 2 * config.latent_width)
        self.from_latent = nn.Linear(config.latent_width, decoder.width)
        self.register_buffer("latent_mean", torch.zeros(shape))
        self.register_buffer("latent_std", torch.ones(shape))
        self.register_buffer("running_std", torch.ones(()))

    @classmethod
    def from_backbone(cls, config: ThoughtVAEConfig, backbone: Backbone, seed: int = 0) -> "ThoughtVAE":
        """A VAE whose encoder and decoder both start as copies of `backbone`."""
        decoder = copy.deepcopy(backbone)
        if config.decoder == "frozen":
            decoder.requires_grad_(False)
        elif config.decoder == "lora":
            decoder.add_lora(config.lora_rank, special_tokens=False)
        vae = cls(config, copy.deepcopy(backbone), decoder)
        vae.init_weights(torch.Generator().manual_seed(seed))
        return vae

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Queries and the latent projections; the two language models keep theirs."""
        self.queries.normal_(0, 0.02, generator=generator)
        for layer in (self.to_posterior, self.from_latent):
            layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
        self.to_posterior.bias[self.config.latent_width :] = -3  # start near-deterministic, or nothing is learned

    def tokenize(self, blocks: Sequence[Block]) -> BlockTokens:
        """Tokens of the blocks, `<eos>` included, and of what stands before them if the VAE reads that.

        Raises:
            ValueError: if a block, with what stands before it, has more tokens than the model has positions.
        """
        ids, valid = self.encoder.tokenize([block.text for block in blocks], add_eos=True)
        if not self.config.reads_context:
            return BlockTokens(ids, valid, ids[:, :0], valid[:, :0])
        before_ids, before_valid = self.encoder.tokenize([block.before for block in blocks], opening=True)
        lengths = valid.sum(1) + before_valid.sum(1) + self.config.num_latents
        longest = int(lengths.argmax())
        self.encoder.check_length(int(lengths[longest]), "".join(blocks[longest]))
        return BlockTokens(ids, valid, before_ids, before_valid)

    def encode(self, tokens: BlockTokens) -> Posterior:
        """Posterior of M blocks (`mean`, `log_var`: (M, N, D)) from their tokens."""
        parts = [(tokens.before_ids, tokens.before_valid), (tokens.ids, tokens.valid)]
        return read_posterior(self.encoder, parts, self.queries, self.to_posterior)

    def decode_logits(self, z: Float[Tensor, "M N D"], tokens: BlockTokens) -> Float[Tensor, "M T V"]:
        """Teacher-forced logits of each token of the blocks' texts, given raw (not standardised) latents."""
        latents = self.from_latent(z.to(self.from_latent.weight.dtype))
        read, written = self.decoder.embed(tokens.before_ids), self.decoder.embed(tokens.ids[:, :-1])
        embeds = torch.cat([latents, read, written], dim=1)
        valid = torch.cat([tokens.valid.new_ones(latents.shape[:2]), tokens.before_valid, tokens.valid[:, :-1]], dim=1)
        _, hidden = append(self.decoder, None, embeds, valid)
        return self.decoder.logits(hidden[:, latents.shape[1] + read.shape[1] - 1 :])

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "M N D"], before: Sequence[str]) -> list[str]:
        """Greedy text of each block, from raw (not standardised) latents; `before` is what stands before each."""
        return self.decode_counted(z, before)[0]

    @torch.no_grad()
    def decode_counted(self, z: Float[Tensor, "M N D"], before: Sequence[str]) -> tuple[list[str], int]:
        """As `decode`, and the positions that the decoder processed."""
        latents = self.from_latent(z.to(self.from_latent.weight.dtype))
        valid = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        prefix, _ = append(self.decoder, None, latents, valid)
        if self.config.reads_context:
            ids, valid = self.decoder.tokenize(before, opening=True)
            prefix, _ = append(self.decoder, prefix, self.decoder.embed(ids), valid)
        texts, decoded = continue_text(self.decoder, prefix, self.config.max_block_tokens)
        return texts, prefix.valid.numel() + decoded

    def loss(
        self,
        tokens: BlockTokens,
        generator: torch.Generator,
        beta_share: float = 1.0,
        hidden_share: float = 0.0,
        count: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative beta-ELBO of M blocks, nats: cross-entropy summed over tokens + beta KL, mean over blocks.

        `beta_share` multiplies beta, which may rise over the first steps. With probability `hidden_share` a block's
        decoder does not see what stands before it. `count`: what sums over blocks are divided by, M by default.
        """
        config, ids, valid = self.config, tokens.ids, tokens.valid
        corrupted = corrupt(ids, valid, config.token_corruption, len(self.encoder.tokenizer), generator)
        posterior = self.encode(replace(tokens, ids=corrupted))
        z = posterior.sample(generator)
        if self.training:
            self.running_std.lerp_(z.detach().std(), 0.01)
        if config.latent_noise:
            eta = torch.randn(z.shape, generator=generator).to(z.device)
            z = z + config.latent_noise * self.running_std * eta
        seen = tokens
        if hidden_share:
            is_seen = (torch.rand(len(ids), generator=generator) >= hidden_share).to(ids.device)
            seen = replace(tokens, before_valid=tokens.before_valid & is_seen[:, None])
        logits = self.decode_logits(z, seen)
        reconstruction = token_cross_entropy(logits, ids, valid, reduction="sequence_sum_mean", count=count)
        kl = gaussian_kl_to_standard(posterior.mean, posterior.log_var).sum() / (len(ids) if count is None else count)
        exact = ((logits.argmax(-1) == ids) | ~valid).all(1).float().mean()
        metrics = {"loss/reconstruction": reconstruction, "loss/kl": kl, "vae/exact_sampled": exact}
        return reconstruction + beta_share * config.beta * kl, metrics

    @property
    def scale(self) -> LatentScale:
        return LatentScale(self.latent_mean, self.latent_std)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, encoder/, decoder/ (Hugging Face layout) and the heads and statistics as safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.save_pretrained(folder / "encoder")
        self.decoder.save_pretrained(folder / "decoder")
        heads = {
            k: v.contiguous() for k, v in self.state_dict().items() if k.split(".")[0] not in ("encoder", "decoder")
        }
        save_file(heads, folder / "heads.safetensors")
        (folder / "config.json").write_text(json.dumps({"model": "ThoughtVAE", **asdict(self.config)}, indent=2))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ThoughtVAE":
        """Load what `save_pretrained` wrote; `assets/...` names a bundled one.

        Raises:
            ValueError: if the folder holds no ThoughtVAE.
        """
        folder = Path(located(folder))
        config = read_config(folder, "ThoughtVAE")
        vae = cls(
            ThoughtVAEConfig(**config),
            Backbone.from_pretrained(folder / "encoder"),
            Backbone.from_pretrained(folder / "decoder"),
        )
        load_heads(vae, folder, ("encoder.", "decoder."))
        return vae.eval()


def read_config(folder: Path, model: str) -> dict:
    """config.json of a saved ladi model, without its `model` key.

    Raises:
        ValueError: if there is none, or it belongs to another kind of model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a saved {model}: it has no config.json")
    config = json.loads(path.read_text())
    found = config.pop("model", config.get("model_type", "unknown"))
    if found == "unknown":
        raise ValueError(f"{folder} is not a saved {model}: its config.json is something else's")
    if found != model:
        raise ValueError(f"{folder} holds a {found}, not a {model}")
    return config


def load_heads(model: nn.Module, folder: Path, elsewhere: tuple[str, ...]) -> None:
    """Load `heads.safetensors`: all weights and buffers but those of the submodules named in `elsewhere`.

    Raises:
        ValueError: if the file lacks some of them or holds others.
    """
    saved = load_file(folder / "heads.safetensors")
    wanted = {name for name in model.state_dict() if not name.startswith(elsewhere)}
    if wanted != set(saved):
        raise ValueError(f"{folder} was saved by another version of ladi: {sorted(wanted ^ set(saved))} differ")
    model.load_state_dict(saved, strict=False)


def corrupt(
    ids: Int[Tensor, "M T"],
    valid: Bool[Tensor, "M T"],
    probability: float,
    vocab_size: int,
    generator: torch.Generator,
) -> Int[Tensor, "M T"]:
    """Token ids with each valid one replaced, with `probability`, by a uniformly drawn token."""
    if probability == 0:
        return ids
    replace = (torch.rand(ids.shape, generator=generator) < probability).to(ids.device) & valid
    random_ids = torch.randint(vocab_size, ids.shape, generator=generator).to(ids.device)
    return torch.where(replace, random_ids, ids)
