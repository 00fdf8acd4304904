"""The language model under everything: the only file that knows Hugging Face transformers and peft.

A `Backbone` is any Llama- or Qwen3-family causal language model with its tokenizer, seen as four functions:
embeddings, hidden states under an explicit boolean mask (with an optional cache of keys and values), LM-head logits,
and text <-> ids. Gradients flow through cached keys and values into the context that made them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.bundled import located

# `<bot>` and `<eot>` enclose a block of latents, `<soa>` starts the answer.
SPECIAL_TOKENS = {"bot": "<bot>", "eot": "<eot>", "soa": "<soa>"}

transformers_logging.disable_progress_bar()  # a bar for every file of a small model drowns our own

KeyValues = Sequence[tuple[Tensor, Tensor]]  # one (keys, values) a layer, each (B, heads, S, head_dim)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Where the language model comes from: `name_or_path`, or, where that is empty, a new one of the given size."""

    name_or_path: str = ""
    """Hub name or folder of a Llama- or Qwen3-family causal LM; empty makes a new model with a character tokenizer."""
    family: Literal["qwen3", "llama"] = "qwen3"
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 384
    max_positions: int = 512
    seed: int = 0
    """Of the initial weights of a new model."""

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})")


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token per character of `alphabet`; others become `<unk>`."""
    words = ["<pad>", "<eos>", "<unk>", *SPECIAL_TOKENS.values(), *sorted(set(alphabet))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL_TOKENS.values()),
        clean_up_tokenization_spaces=False,
    )


def _new_lm_config(config: BackboneConfig, vocab_size: int, **ids: int | None) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.width // config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        **ids,
    }
    return Qwen3Config(**sizes) if config.family == "qwen3" else LlamaConfig(**sizes)


def _new_lm(config: BackboneConfig, tokenizer: Any) -> Any:
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    lm_config = _new_lm_config(config, len(tokenizer), **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return AutoModelForCausalLM.from_config(lm_config, attn_implementation="sdpa")


Dtype = Literal["float32", "bfloat16"]
"""What weights may be kept in."""

PUBLISHED = {
    "meta-llama/Llama-3.1-8B": LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
        vocab_size=128256,
    ),
    "meta-llama/Llama-2-7b-hf": LlamaConfig(),  # the defaults of the class
    "princeton-nlp/Sheared-LLaMA-1.3B": LlamaConfig(
        hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=5504
    ),
    "Qwen/Qwen3-8B": Qwen3Config(
        hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        intermediate_size=12288, vocab_size=151936,
    ),
    "Qwen/Qwen3-1.7B": Qwen3Config(
        hidden_size=2048, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        intermediate_size=6144, vocab_size=151936, tie_word_embeddings=True,
    ),
    "Qwen/Qwen3-0.6B": Qwen3Config(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        intermediate_size=3072, vocab_size=151936, tie_word_embeddings=True,
    ),
}  # fmt: skip
"""Sizes of models that presets name, from their public configurations: estimates need no network."""


def _lm_config(config: BackboneConfig, vocab_size: int) -> Any:
    if not config.name_or_path:
        return _new_lm_config(config, vocab_size)
    try:
        return AutoConfig.from_pretrained(located(config.name_or_path), local_files_only=True)
    except (OSError, ValueError) as error:
        if config.name_or_path not in PUBLISHED:
            raise ValueError(
                f"no configuration of {config.name_or_path!r} is here; download it, or name a folder"
            ) from error
        return PUBLISHED[config.name_or_path]


@dataclass(frozen=True)
class LmShape:
    """Sizes of a language model."""

    num_parameters: int
    num_layers: int
    width: int
    head_width: int
    """All heads' queries together."""
    kv_width: int
    """All key heads together."""
    mlp_width: int
    vocab_size: int
    num_heads: int
    normalises_heads: bool
    """Queries and keys are normalised, as in Qwen3."""


def lm_shape(config: BackboneConfig, vocab_size: int) -> LmShape:
    """Sizes of the model that `config` names or describes, from its configuration alone (built without weights).

    `vocab_size` is that of a new model.

    Raises:
        ValueError: if the configuration of a named model is neither here nor known.
    """
    lm_config = _lm_config(config, vocab_size)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(lm_config)
    head_dim = getattr(lm_config, "head_dim", None) or lm_config.hidden_size // lm_config.num_attention_heads
    return LmShape(
        num_parameters=sum(p.numel() for p in lm.parameters()),
        num_layers=lm_config.num_hidden_layers,
        width=lm_config.hidden_size,
        head_width=head_dim * lm_config.num_attention_heads,
        kv_width=head_dim * lm_config.num_key_value_heads,
        mlp_width=lm_config.intermediate_size,
        vocab_size=lm_config.vocab_size,
        num_heads=lm_config.num_attention_heads,
        normalises_heads=lm_config.model_type == "qwen3",
    )


GONE = (torch.empty(0), torch.empty(0))
"""Keys and values that were given away."""


class Cache(DynamicCache):
    """Keys and values of a pass: `past` and what the pass appends to it, in `now`.

    A layer that is recomputed in the backward pass appends again; it finds the same `past` and changes nothing.
    """

    def __init__(self, past: KeyValues | None):
        super().__init__()
        self.past = past
        self.now: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """All keys and values of a layer, given those of the pass (transformers calls this)."""
        keys, values = key_states.contiguous(), value_states.contiguous()
        if self.past is not None:
            past_keys, past_values = self.past[layer_idx]
            if isinstance(self.past, list):
                self.past[layer_idx] = GONE
            keys, values = torch.cat([past_keys, keys], dim=-2), torch.cat([past_values, values], dim=-2)
        self.now.setdefault(layer_idx, (keys, values))
        return keys, values


_as_a_whole = ContextVar("a pass that is computed again as a whole", default=False)


def compute_again(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, which saves nothing for the backward pass and is computed there again.

    Layers within are not recomputed each by itself: that would keep their inputs.
    """

    def whole(*args: Any) -> Any:
        token = _as_a_whole.set(True)
        try:
            return function(*args)
        finally:
            _as_a_whole.reset(token)

    return checkpoint(whole, *args, use_reentrant=False)


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if _as_a_whole.get() or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@torch.no_grad()
def draw_rows(table: Float[Tensor, "V C"], ids: Sequence[int]) -> None:
    """Fill the rows `ids`, the last that a tokenizer has, with uniform numbers as large (root mean square) as those of
    the rows before them: the same at every load and on every machine, for a frozen model is known by its weights' hash.
    """
    known = table[: min(ids) : 1 + min(ids) // 1000].double()  # a thousand rows will do
    size = float(f"{known.square().mean().sqrt().item():.3g}")  # digits that do not depend on the order of the sum
    numbers = 2 * torch.rand(len(ids), table.shape[1], generator=torch.Generator().manual_seed(0)) - 1
    table[torch.tensor(ids)] = (3**0.5 * size * numbers).to(table.dtype)


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Says in one line what of transformers could not be loaded.

    Raises:
        OSError: if it could not.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise OSError(
            f"cannot load {what}: {said}. Name a folder that holds it (a stage saves its model under final/), or a "
            "model of the hub, downloaded while online"
        ) from error


class Backbone(nn.Module):
    """A causal LM and its tokenizer; `width` is C, `eos`, `pad`, `bot`, `eot` and `soa` are token ids."""

    def __init__(self, lm: Any, tokenizer: Any):
        super().__init__()
        self.lm: Any = lm
        self.tokenizer: Any = tokenizer
        self.width: int = lm.config.hidden_size
        self.max_positions: int = lm.config.max_position_embeddings
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.first: list[int] = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
        """What the tokenizer puts before a text: `<s>`, or nothing."""
        self.bot, self.eot, self.soa = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS.values())

    @classmethod
    def from_config(cls, config: BackboneConfig, alphabet: str = "") -> "Backbone":
        """A new model over `alphabet`, or the one `config.name_or_path` names.

        Raises:
            ValueError: if the model is new and `alphabet` is empty.
        """
        if config.name_or_path:
            return cls.from_pretrained(config.name_or_path)
        if not alphabet:
            raise ValueError("a new backbone needs the characters of its texts; got an empty alphabet")
        tokenizer = character_tokenizer(alphabet)
        return cls(_new_lm(config, tokenizer), tokenizer)

    @classmethod
    def untrained(cls, config: BackboneConfig, alphabet: str) -> "Backbone":
        """Random weights in the sizes that `config` gives or names, over the characters of `alphabet`: for timing.

        Raises:
            ValueError: if the configuration of a named model is neither here nor known.
        """
        tokenizer = character_tokenizer(alphabet)
        lm_config = _lm_config(config, len(tokenizer))
        return cls(AutoModelForCausalLM.from_config(lm_config, attn_implementation="sdpa"), tokenizer)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, dtype: torch.dtype = torch.float32) -> "Backbone":
        """Load a model and tokenizer from a folder, `assets/...` or the hub; missing special tokens are added, with new
        embeddings also where the vocabulary had room for them, since nobody trained those rows.

        Raises:
            ValueError: if the model is not of the Llama or Qwen3 family, or its tokenizer has no end-of-text token.
            OSError: if model or tokenizer is neither in a folder nor in the hub's cache and cannot be downloaded.
        """
        name_or_path = located(name_or_path)
        with loading(f"the model {name_or_path}"):
            lm: Any = AutoModelForCausalLM.from_pretrained(
                name_or_path, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
            )
        if lm.config.model_type not in ("llama", "qwen3"):
            raise ValueError(f"{name_or_path} is a {lm.config.model_type!r} model; use a llama or qwen3 one")
        with loading(f"the tokenizer of {name_or_path}"):
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {name_or_path} has no end-of-text token; set eos_token in its tokenizer_config.json"
            )
        missing = [token for token in SPECIAL_TOKENS.values() if token not in tokenizer.get_vocab()]
        if missing:
            tokenizer.add_special_tokens({"additional_special_tokens": missing})
            new, grows = tokenizer.convert_tokens_to_ids(missing), len(tokenizer) > lm.config.vocab_size
            if grows:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)  # every load has to draw the same, or a frozen model is another each time
                    lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            draw_rows(lm.get_input_embeddings().weight, new)
            if grows and not lm.config.tie_word_embeddings:
                draw_rows(lm.get_output_embeddings().weight, new)
        return cls(lm, tokenizer)

    def save_pretrained(self, folder: Path) -> None:
        """Write model (LoRA merged in, if any) and tokenizer in the Hugging Face layout."""
        lm = self.lm.merge_and_unload() if hasattr(self.lm, "merge_and_unload") else self.lm
        lm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def add_lora(self, rank: int, seed: int = 0, special_tokens: bool = True) -> None:
        """Freeze the weights and train low-rank updates of every linear layer instead (LoRA, arXiv:2106.09685), and the
        embeddings of `<bot>`, `<eot>` and `<soa>`, which a pretrained model has never seen; without `special_tokens`,
        for a model that reads none of them, not those.

        peft puts the trained rows into a copy of the embeddings, and of a head that is tied to them, at every pass.
        """
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            trainable_token_indices=[self.bot, self.eot, self.soa] if special_tokens else None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the same start in all processes
            self.lm = get_peft_model(self.lm, config)

    @property
    def decoder(self) -> Any:
        """The language model without its head."""
        return self.lm.get_base_model().model if hasattr(self.lm, "get_base_model") else self.lm.model

    def recompute_layers(self) -> None:
        """From now on compute a layer's activations again in the backward pass instead of keeping them."""
        for layer in self.decoder.layers:
            if not isinstance(layer.forward, partial):
                layer.forward = partial(_recomputed, layer.forward)

    @property
    def device(self) -> torch.device:
        return self.decoder.norm.weight.device  # the embeddings' weight may be a copy that LoRA makes when asked

    def embed(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch C"]:
        """Input embeddings of token ids."""
        return self.lm.get_input_embeddings()(ids)

    def hidden(
        self,
        embeds: Float[Tensor, "B T C"],
        mask: Bool[Tensor, "B T L"],
        positions: Int[Tensor, "B T"],
        past: KeyValues | None = None,
    ) -> tuple[Float[Tensor, "B T C"], KeyValues]:
        """Last hidden states (after the final norm) of T tokens, and the keys and values of all L = S + T so far.

        `past` holds the S tokens before. A tuple is not changed; of a list each layer's are dropped once the layer has
        copied them, so that memory holds them once (no gradient can be taken through those).
        """
        cache = Cache(past)
        out = self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state, tuple(cache.now[layer] for layer in sorted(cache.now))

    def logits(self, hidden: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch V"]:
        """LM-head logits of hidden states."""
        return self.lm.get_output_embeddings()(hidden)

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        opening: bool = False,
        add_eos: bool = False,
        num_beside: int = 0,
    ) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Token ids padded on the right to the longest text, and which of them are real.

        Texts that are `opening` a sequence are padded on the left, behind the token with which the tokenizer begins a
        text, if it does so (`<s>` of Llama).

        Raises:
            ValueError: if a text, with `num_beside` more tokens, has more than the model has positions.
        """
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        if opening:
            rows = [[*self.first, *row] for row in rows]
        if add_eos:
            rows = [[*row, self.eos] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        length = int(lengths.max())
        self.check_length(length + num_beside, texts[int(lengths.argmax())])
        place = torch.arange(length)
        valid = (place.flip(0) if opening else place) < lengths[:, None]
        ids = torch.full((len(rows), length), self.pad)
        ids[valid] = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.long)
        return ids.to(self.device), valid.to(self.device)

    def check_length(self, num_tokens: int, text: str) -> None:
        """Raise if `text`, with what stands beside it, is longer than what the model can read.

        Raises:
            ValueError: with both lengths and the beginning of the text.
        """
        if num_tokens > self.max_positions:
            raise ValueError(
                f"{num_tokens} tokens, but the model has {self.max_positions} positions: {text[:60]!r}...; leave this "
                "problem out, or take a model with more (of a new one: backbone.max_positions)"
            )

    def detokenize(self, ids: Int[Tensor, "B T"]) -> list[str]:
        """Texts of id rows, each cut at its first `<eos>`; special tokens are left out."""
        rows = [row[: row.index(self.eos)] if self.eos in row else row for row in ids.tolist()]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)


def expand_rows(past: KeyValues, repeats: int) -> KeyValues:
    """Keys and values with every row repeated `repeats` times, neighbours together."""
    if repeats == 1:
        return past
    return tuple((k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)) for k, v in past)
