"""DLR: a small assistant thinks in latents and steers a frozen main model (DeepLatent Reasoning, arXiv:2601.17275).

    assistant:  question <bot> z_1 z_2 ... z_T     z_t ~ N(mean(h_t), std^2 I), fed back as the next input
    main:       question W z_1 ... W z_T <soa> text

The latents are drawn one after another by the assistant (section 6); a projection W carries each into the main model's
embedding space, and the main model, whose weights never change, writes the text (equation 10). The two models may
differ in size, family and tokenizer.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ladi.arrays import Float, Int, Tensor, content_hash
from ladi.bundled import located
from ladi.draws import Source, Streams, normal
from ladi.models.backbone import Backbone, Dtype
from ladi.models.decoding import Continuation, Prefix, append, continue_ids, expand, open_question, select_rows
from ladi.models.vae import load_heads, read_config


@dataclass(frozen=True, kw_only=True)
class AssistantConfig:
    """Shape of a thought and of its distribution."""

    num_latents: int = 8
    """T: latents of a trajectory."""
    latent_width: int = 32
    """d: numbers of a latent."""
    std: float = 1.0
    """sigma of the policy; where it is learned, its start."""
    learn_std: bool = False
    max_answer_tokens: int = 64
    """Longest text of the main model."""

    def __post_init__(self):
        if self.num_latents < 1 or self.latent_width < 1 or self.std <= 0:
            raise ValueError(
                f"need num_latents >= 1, latent_width >= 1 and std > 0, got {self.num_latents}, {self.latent_width} "
                f"and {self.std}"
            )


@dataclass(frozen=True)
class MainCost:
    """What the main model did: rows times passes, and positions, padding included."""

    forwards: int = 0
    tokens: int = 0

    def __add__(self, other: "MainCost") -> "MainCost":
        return MainCost(self.forwards + other.forwards, self.tokens + other.tokens)


@dataclass(frozen=True)
class AssistantGeneration:
    """What `LatentAssistant.generate` returns: B questions, R trajectories each."""

    texts: list[list[str]]
    latents: Float[Tensor, "B R T D"]
    cost: MainCost


class LatentPolicy(nn.Module):
    """The assistant proper: an autoregressive Gaussian over T latents of width D given a question."""

    def __init__(self, config: AssistantConfig, backbone: Backbone):
        super().__init__()
        self.config, self.backbone = config, backbone
        self.latent_in = nn.Linear(config.latent_width, backbone.width)
        self.mean_head = nn.Linear(backbone.width, config.latent_width)
        self.log_std = nn.Parameter(torch.tensor(config.std).log(), requires_grad=config.learn_std)

    @property
    def std(self) -> Float[Tensor, ""]:
        return self.log_std.exp()

    def open(self, questions: Sequence[str]) -> Prefix:
        """The cached prefix `question <bot>`: B rows.

        Raises:
            ValueError: if a question and its latents have more tokens than the model has positions.
        """
        return open_question(self.backbone, questions, self.backbone.bot, self.config.num_latents)

    def sample(self, prefix: Prefix, noise: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Latents z_t = mean(h_t) + std noise_t, each fed back before the next is drawn.

        Differentiable through every step (the reparameterised sample of equation 8); noise 0 gives the means.
        """
        latents: list[Tensor] = []
        for t in range(self.config.num_latents):
            latents.append(self.mean_head(prefix.hidden).float() + self.std * noise[:, t])
            if t + 1 < self.config.num_latents:
                embeds = self._embed(latents[-1][:, None])
                prefix, _ = append(self.backbone, prefix, embeds, _all_true(embeds))
        return torch.stack(latents, dim=1)

    def means(self, prefix: Prefix, latents: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The means of given latents' distributions, in one parallel pass; fp32."""
        embeds = self._embed(latents[:, :-1])
        _, hidden = append(self.backbone, prefix, embeds, _all_true(embeds))
        return self.mean_head(torch.cat([prefix.hidden[:, None], hidden], dim=1)).float()

    def _embed(self, latents: Float[Tensor, "B T D"]) -> Float[Tensor, "B T C"]:
        return self.latent_in(latents.to(self.latent_in.weight.dtype))


class ValueHead(nn.Module):
    """Predicts the reward of a trajectory from the assistant's view of the question and the latents (the filter)."""

    def __init__(self, question_width: int, config: AssistantConfig, hidden_width: int = 128):
        super().__init__()
        width = question_width + config.num_latents * config.latent_width
        self.mlp = nn.Sequential(nn.Linear(width, hidden_width), nn.GELU(), nn.Linear(hidden_width, 1))

    def forward(self, question: Float[Tensor, "B C"], latents: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
        return self.mlp(torch.cat([question.float(), latents.flatten(1)], dim=1)).squeeze(1)


class LatentAssistant(nn.Module):
    """The assistant with its projection into, and the frozen weights of, the main model.

    `main_source` says where the main model came from. Only `policy`, `projection` and `value` are saved.
    """

    def __init__(self, config: AssistantConfig, backbone: Backbone, main: Backbone, main_source: str):
        super().__init__()
        self.config, self.main_source = config, main_source
        self.policy = LatentPolicy(config, backbone)
        self.projection = nn.Linear(config.latent_width, main.width)
        self.value = ValueHead(backbone.width, config)
        self.main = main.requires_grad_(False)

    def train(self, mode: bool = True) -> "LatentAssistant":
        """As for any module, but the main model stays as it is in use: without dropout."""
        super().train(mode)
        self.main.eval()
        return self

    @classmethod
    def from_backbones(
        cls, config: AssistantConfig, backbone: Backbone, main: Backbone, main_source: str, seed: int = 0
    ) -> "LatentAssistant":
        """An assistant with new heads; projected latents start as long as the main model's embeddings."""
        assistant = cls(config, backbone, main, main_source)
        assistant.init_weights(torch.Generator().manual_seed(seed))
        return assistant

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Everything but the two language models."""
        layers = [self.policy.latent_in, self.policy.mean_head, self.projection]
        for layer in (*layers, *(m for m in self.value.mlp if isinstance(m, nn.Linear))):
            layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
        embeddings = self.main.embed(torch.arange(self.main.lm.config.vocab_size, device=self.main.device)).float()
        self.projection.weight.mul_(embeddings.square().mean().sqrt().to(self.projection.weight.device))

    # ---- the main model ----------------------------------------------------------------------------------------

    def main_prefix(
        self, questions: Sequence[str], latents: Float[Tensor, "B R T D"], rows: Int[Tensor, " S"] | None = None
    ) -> tuple[Prefix, MainCost]:
        """The main model's cached `question latents <soa>`, one row for each trajectory, and what it cost.

        Each question is read once and its keys and values shared. `rows` names some of the B * R trajectories instead
        of all. The latents stand at the positions of the question's last T tokens, so that `<soa>` and the text are
        as far from the question as the main model learned them to be.
        """
        batch, num_trajectories = latents.shape[:2]
        if rows is None:
            rows = torch.arange(batch * num_trajectories, device=latents.device)
        ids, valid = self.main.tokenize(questions, opening=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.main.parameters())):
            question, _ = append(self.main, None, self.main.embed(ids), valid)
        prefix = select_rows(question, rows // num_trajectories)
        projected = self.projection(latents.flatten(0, 1)[rows].to(self.projection.weight.dtype))
        soa = self.main.embed(torch.full((len(rows), 1), self.main.soa, device=ids.device))
        embeds = torch.cat([projected.to(soa.dtype), soa], dim=1)
        steps = torch.arange(-self.config.num_latents, 1, device=ids.device)
        positions = (prefix.position[:, None] + steps).clamp(min=0)
        prefix, _ = append(self.main, prefix, embeds, _all_true(embeds), positions)
        return prefix, MainCost(batch + len(rows), ids.numel() + embeds.shape[0] * embeds.shape[1])

    @torch.no_grad()
    def decode(
        self,
        questions: Sequence[str],
        latents: Float[Tensor, "B R T D"],
        rows: Int[Tensor, " S"] | None = None,
        temperature: float = 0.0,
        generator: Source | None = None,
        texts_per_latent: int = 1,
        at_once: int = 0,
    ) -> tuple[Continuation, MainCost]:
        """Texts of the main model after each trajectory (or those named in `rows`), and what they cost.

        `at_once` as in `continue_ids`.
        """
        prefix, cost = self.main_prefix(questions, latents, rows)
        length = self.config.max_answer_tokens
        out = continue_ids(self.main, prefix, length, temperature, generator, repeats=texts_per_latent, at_once=at_once)
        return out, cost + MainCost(out.tokens_processed, out.tokens_processed)

    @torch.no_grad()
    def think(
        self, questions: Sequence[str], num_trajectories: int, generator: Source, noise_scale: float = 1.0
    ) -> Float[Tensor, "B R T D"]:
        """`num_trajectories` trajectories of each question; `noise_scale` multiplies the policy's noise, 0: means.

        Raises:
            ValueError: if `num_trajectories` is less than 1.
        """
        if num_trajectories < 1:
            raise ValueError(f"num_latents must be at least 1, got {num_trajectories}")
        config = self.config
        shape = (len(questions), num_trajectories, config.num_latents, config.latent_width)
        noise = normal(shape, generator).to(self.main.device) * noise_scale
        prefix = expand(self.policy.open(questions), num_trajectories)
        return self.policy.sample(prefix, noise.flatten(0, 1)).view(shape)

    def generate(
        self,
        questions: Sequence[str],
        *,
        num_latents: int = 1,
        noise_scale: float = 1.0,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> AssistantGeneration:
        """Texts and latents: `num_latents` independent trajectories per question, one text each."""
        generator = Streams.of(seed, range(len(questions)))
        latents = self.think(questions, num_latents, generator, noise_scale)
        out, cost = self.decode(questions, latents, temperature=temperature, generator=generator)
        texts = self.main.detokenize(out.ids)
        return AssistantGeneration(
            [texts[i : i + num_latents] for i in range(0, len(texts), num_latents)], latents, cost
        )

    # ---- files -------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json (which names the main model, its dtype and its weights' hash in that), backbone/ of the
        assistant, the heads.

        The main model is not written, except where it was trained: then it stands in main/.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.policy.backbone.save_pretrained(folder / "backbone")
        weights = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith(ELSEWHERE)}
        save_file(weights, folder / "heads.safetensors")
        trained = any(p.requires_grad for p in self.main.parameters())
        if trained:
            self.main.save_pretrained(folder / "main")
        main = {
            "source": "" if trained else self.main_source,
            "dtype": str(self.main.lm.dtype).removeprefix("torch."),
            "sha256": weights_hash(self.main),
        }
        config = {"model": "LatentAssistant", **asdict(self.config), "main": main}
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    @classmethod
    def from_pretrained(cls, folder: str | Path, main: str | Path | Backbone = "") -> "LatentAssistant":
        """Load what `save_pretrained` wrote, ready for inference.

        `main` is the main model, or where it lies now; by default it is looked for where it lay at training. It is
        loaded in the dtype of that time.

        Raises:
            ValueError: if the folder holds no LatentAssistant, or `main` has other weights than the one it was
                trained with, or has them in another dtype.
            OSError: if no main model can be loaded from there.
        """
        folder = Path(located(folder))
        config = read_config(folder, "LatentAssistant")
        trained_with = config.pop("main")
        stored = trained_with["source"] or str(folder / "main")
        dtype = trained_with.get("dtype", "float32")  # older files do not say it
        if isinstance(main, Backbone):
            loaded, source, said = main, stored, "the given one"
        else:
            source = said = str(main or stored)
            try:
                loaded = load_main(source, dtype)
            except OSError as error:
                raise OSError(f"{error}. It is the main model of {folder}: say with main where it lies now") from error
        found = weights_hash(loaded)
        if found != trained_with["sha256"]:
            raise ValueError(
                f"{folder} was trained with the main model of weights {trained_with['sha256'][:12]} ({stored}, "
                f"{dtype}), but {said} has {found[:12]}; say with main where that one lies now"
            )
        assistant = cls(AssistantConfig(**config), Backbone.from_pretrained(folder / "backbone"), loaded, source)
        load_heads(assistant, folder, ELSEWHERE)
        return assistant.eval()


ELSEWHERE = ("policy.backbone.", "main.")
"""Weights of a LatentAssistant that are not in heads.safetensors."""


def load_main(source: str, dtype: Dtype = "float32") -> Backbone:
    """The main model at a folder, of a bundled model's name or of a hub name."""
    return Backbone.from_pretrained(source, getattr(torch, dtype)).eval()


def weights_hash(backbone: Backbone) -> str:
    """sha256 over the names, dtypes, shapes and bytes of a language model's weights."""
    return content_hash(dict(backbone.lm.named_parameters()))


def _all_true(embeds: Float[Tensor, "B T C"]) -> Tensor:
    return torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
