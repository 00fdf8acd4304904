"""Autoregressive decoding of text after a cached prefix: the text policy, shared by SFT models, VAE and reasoner."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.draws import Source, uniform
from ladi.models.backbone import Backbone, KeyValues, expand_rows
from ladi.models.mask import append_mask


@dataclass(frozen=True)
class Prefix:
    """A cached prefix of S tokens, ready to be continued; `hidden` is the last token's state."""

    past: KeyValues
    valid: Bool[Tensor, "B S"]
    position: Int[Tensor, " B"]
    hidden: Float[Tensor, "B C"]


def append(
    backbone: Backbone,
    prefix: Prefix | None,
    embeds: Float[Tensor, "B T C"],
    valid: Bool[Tensor, "B T"],
    positions: Int[Tensor, "B T"] | None = None,
) -> tuple[Prefix, Float[Tensor, "B T C"]]:
    """The prefix grown by T tokens, and the hidden states of those tokens.

    `positions` says where they stand; by default one behind the other (padding takes no position).
    """
    if prefix is None:
        cached_valid, position, past = valid[:, :0], valid.new_zeros(len(valid), dtype=torch.long), None
    else:
        cached_valid, position, past = prefix.valid, prefix.position, prefix.past
    if positions is None:
        positions = position[:, None] + (valid.long().cumsum(1) - 1).clamp(min=0)
        position = position + valid.sum(1)
    else:
        position = positions[:, -1] + 1
    hidden, past = backbone.hidden(embeds, append_mask(cached_valid, valid), positions, past)
    return Prefix(past, torch.cat([cached_valid, valid], 1), position, hidden[:, -1]), hidden


def open_question(backbone: Backbone, questions: Sequence[str], token: int, num_behind: int = 0) -> Prefix:
    """The cached prefix `question <token>`: `<soa>` of a token-level model, `<bot>` of an assistant.

    Raises:
        ValueError: if a question and `num_behind` more have more tokens than the model has positions.
    """
    ids, valid = backbone.tokenize(questions, opening=True, num_beside=num_behind)
    embeds = backbone.embed(torch.cat([ids, torch.full_like(ids[:, :1], token)], dim=1))
    return append(backbone, None, embeds, torch.cat([valid, valid.new_ones(len(ids), 1)], dim=1))[0]


def sample_tokens(
    logits: Float[Tensor, "B V"], temperature: float, u: Float[Tensor, " B"] | None
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """One token per row: the most likely one at temperature 0, else where the distribution function of
    softmax(logits / temperature) passes `u` in [0, 1), uniform and independent. And the entropy of what it was drawn
    from, nats; 0 at temperature 0.
    """
    if temperature == 0:
        return logits.argmax(-1), torch.zeros_like(logits[:, 0], dtype=torch.float32)
    assert u is not None, "a temperature above 0 needs randomness"
    probabilities = (logits.double() / temperature).softmax(-1)
    reached = probabilities.cumsum(-1)
    drawn = torch.searchsorted(reached, u.double()[:, None] * reached[:, -1:], right=True).squeeze(1)
    return drawn, torch.special.entr(probabilities.float()).sum(-1)


@dataclass(frozen=True)
class Continuation:
    """Decoded tokens of B rows: `valid` up to and with the first `<eos>`; rows without one were cut, not `finished`.

    `entropies` are those of the distributions that the tokens were drawn from, nats.
    """

    ids: Int[Tensor, "B T"]
    valid: Bool[Tensor, "B T"]
    finished: Bool[Tensor, " B"]
    entropies: Float[Tensor, "B T"]
    tokens_processed: int


@torch.no_grad()
def continue_ids(
    backbone: Backbone,
    prefix: Prefix,
    max_new_tokens: int,
    temperature: float = 0.0,
    generator: Source | None = None,
    *,
    repeats: int = 1,
    at_once: int = 0,
) -> Continuation:
    """`repeats` texts after each row of `prefix`, neighbours together, decoded until `<eos>` or `max_new_tokens`.

    `prefix.hidden` must be the state that predicts the first token. With `at_once` > 0 no more texts than that are
    decoded at a time, which bounds the memory of their keys and values; random numbers do not depend on it. Rows that
    ended are dropped from the batch.

    Raises:
        ValueError: if prefix and tokens may need more positions than the model has.
    """
    longest = int(prefix.position.max())
    if longest + max_new_tokens - 1 > backbone.max_positions:  # the last token is drawn, but not read
        raise ValueError(
            f"the longest prefix of a text has {longest} tokens and {max_new_tokens} may follow, but the model has "
            f"{backbone.max_positions} positions; allow fewer new tokens, leave long questions out, or take a model "
            "with more (of a new one: backbone.max_positions)"
        )
    num_texts = len(prefix.valid) * repeats
    u = None
    if temperature > 0:
        assert generator is not None, "a temperature above 0 needs randomness"
        u = uniform((num_texts, max_new_tokens), generator).to(prefix.valid.device)
    texts = torch.arange(num_texts, device=prefix.valid.device)
    pieces = [
        _continued(backbone, prefix, rows // repeats, max_new_tokens, temperature, None if u is None else u[rows])
        for rows in texts.split(at_once or num_texts)
    ]
    length = max(piece.ids.shape[1] for piece in pieces)

    def together(name: str, padding: int | float) -> Tensor:
        rows = [getattr(piece, name) for piece in pieces]
        return torch.cat([nn.functional.pad(x, (0, length - x.shape[1]), value=padding) for x in rows])

    return Continuation(
        ids=together("ids", backbone.eos),
        valid=together("valid", False),
        finished=torch.cat([piece.finished for piece in pieces]),
        entropies=together("entropies", 0.0),
        tokens_processed=sum(piece.tokens_processed for piece in pieces),
    )


def _continued(
    backbone: Backbone,
    prefix: Prefix,
    chosen: Int[Tensor, " B"],
    max_new_tokens: int,
    temperature: float,
    u: Float[Tensor, "B T"] | None,
) -> Continuation:
    """One text after each of the `chosen` rows of `prefix`."""
    batch, prefix = len(chosen), given_away(select_rows(prefix, chosen))
    ids = torch.full((batch, max_new_tokens), backbone.eos, device=prefix.valid.device)
    entropies = torch.zeros(ids.shape, device=ids.device)
    rows, processed = torch.arange(batch, device=prefix.valid.device), 0
    alive = torch.ones_like(rows, dtype=torch.bool)
    for i in range(max_new_tokens):
        token, entropy = sample_tokens(backbone.logits(prefix.hidden), temperature, None if u is None else u[rows, i])
        ids[rows[alive], i], entropies[rows[alive], i] = token[alive], entropy[alive]
        alive = alive & (token != backbone.eos)
        if not bool(alive.any()) or i + 1 == max_new_tokens:
            break
        if int(alive.sum()) < 0.75 * len(alive):  # a cut copies the whole cache: only when it pays
            prefix = select_rows(prefix, alive.nonzero().squeeze(1))
            rows, token, alive = rows[alive], token[alive], alive[alive]
        processed += len(token)
        ones = torch.ones_like(token, dtype=torch.bool)
        prefix = given_away(append(backbone, prefix, backbone.embed(token[:, None]), ones[:, None])[0])
    is_eos = ids == backbone.eos
    valid = (is_eos.long().cumsum(1) - is_eos.long()) == 0
    # A row that was cut may only look as if it had ended: its last token was drawn, the padding after it was not.
    finished = torch.ones(batch, dtype=torch.bool, device=ids.device)
    finished[rows[alive]] = False
    length = int(valid.sum(1).max())
    return Continuation(ids[:, :length], valid[:, :length], finished, entropies[:, :length], processed)


def continue_text(
    backbone: Backbone,
    prefix: Prefix,
    max_new_tokens: int,
    temperature: float = 0.0,
    generator: Source | None = None,
    repeats: int = 1,
) -> tuple[list[str], int]:
    """As `continue_ids`, but the texts, and the number of tokens the model processed."""
    out = continue_ids(backbone, prefix, max_new_tokens, temperature, generator, repeats=repeats)
    return backbone.detokenize(out.ids), out.tokens_processed


def given_away(prefix: Prefix) -> Prefix:
    """The prefix, but `append` may drop its keys and values layer by layer: memory holds one generation of them."""
    return replace(prefix, past=list(prefix.past))


def select_rows(prefix: Prefix, rows: Int[Tensor, " A"]) -> Prefix:
    """The prefix of some rows, in the given order; a row may be named more than once."""
    past = tuple((k[rows], v[rows]) for k, v in prefix.past)
    return Prefix(past, prefix.valid[rows], prefix.position[rows], prefix.hidden[rows])


def expand(prefix: Prefix, repeats: int) -> Prefix:
    """The prefix with every row repeated `repeats` times, neighbours together."""
    if repeats == 1:
        return prefix
    valid, position, hidden = (x.repeat_interleave(repeats, 0) for x in (prefix.valid, prefix.position, prefix.hidden))
    return Prefix(expand_rows(prefix.past, repeats), valid, position, hidden)
