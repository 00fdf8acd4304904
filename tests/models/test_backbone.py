from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from ladi.draws import Streams
from ladi.models.assistant import weights_hash
from ladi.models.backbone import Backbone, BackboneConfig, character_tokenizer
from ladi.models.decoding import append, continue_ids, continue_text, expand, given_away, open_question, sample_tokens
from tests.conftest import ALPHABET


@torch.no_grad()
def test_cached_equals_full_forward(backbone):
    ids = torch.randint(6, 26, (2, 9), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids, dtype=torch.bool)
    _, full = append(backbone, None, backbone.embed(ids), valid)
    prefix, first = append(backbone, None, backbone.embed(ids[:, :4]), valid[:, :4])
    pieces = [first]
    for i in range(4, 9):
        prefix, hidden = append(backbone, prefix, backbone.embed(ids[:, i : i + 1]), valid[:, i : i + 1])
        pieces.append(hidden)
    torch.testing.assert_close(torch.cat(pieces, 1), full, rtol=0, atol=1e-5)


@torch.no_grad()
def test_our_masked_forward_equals_the_causal_one_of_transformers(backbone):
    ids = torch.randint(6, 26, (2, 9), generator=torch.Generator().manual_seed(0))
    _, hidden = append(backbone, None, backbone.embed(ids), torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(backbone.logits(hidden), backbone.lm(ids).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_greedy_text_equals_that_of_transformers_generate(backbone):
    ids, valid = backbone.tokenize(["44-19", "3*7=2"])
    prefix, _ = append(backbone, None, backbone.embed(ids), valid)
    texts, _ = continue_text(backbone, prefix, 8)
    expected = backbone.lm.generate(ids, attention_mask=valid.long(), max_new_tokens=8, do_sample=False)
    assert texts == backbone.detokenize(expected[:, ids.shape[1] :])


@torch.no_grad()
def test_padding_does_not_change_the_text(backbone):
    ids, valid = backbone.tokenize(["44-19=", "3*7="], opening=True)
    together, _ = continue_text(backbone, append(backbone, None, backbone.embed(ids), valid)[0], 8)
    alone_ids, alone_valid = backbone.tokenize(["3*7="])
    alone, _ = continue_text(backbone, append(backbone, None, backbone.embed(alone_ids), alone_valid)[0], 8)
    assert together[1:] == alone


@torch.no_grad()
def test_texts_that_may_pass_the_last_position_are_refused_before_the_first_pass(backbone):
    ids, valid = backbone.tokenize(["44-19=", "3*7="], opening=True)
    prefix, _ = append(backbone, None, backbone.embed(ids), valid)
    read = []
    backbone.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    backbone.eos, backbone.max_positions = -1, 10
    continue_text(backbone, prefix, 5)
    assert max(read) == 9  # the last of 10 positions
    read.clear()
    with pytest.raises(ValueError, match=r"has 6 tokens and 6 may follow, but the model has 10 positions; allow fewer"):
        continue_text(backbone, prefix, 6)
    assert not read


def test_sampled_tokens_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 3)
    drawn, _ = sample_tokens(logits, 2.0, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, (logits[0] / 2).softmax(-1), rtol=0, atol=0.015)


def test_a_token_of_probability_0_is_never_drawn():
    logits = torch.tensor([[-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")]]).expand(3, 5)
    assert sample_tokens(logits, 1.0, torch.tensor([0.0, 0.5, 1 - 2**-24]))[0].tolist() == [1, 3, 3]


@torch.no_grad()
def test_entropies_of_drawn_tokens_are_those_of_one_pass_over_the_whole_text(backbone):
    """Also where rows that ended are dropped on the way."""
    prefix = expand(open_question(backbone, ["1,2:3", "44-19"], backbone.soa), 40)
    out = continue_ids(backbone, prefix, 12, 1.5, torch.Generator().manual_seed(0))
    assert out.finished.any()
    assert not out.finished.all()
    _, hidden = append(backbone, prefix, backbone.embed(out.ids[:, :-1]), out.valid[:, :-1])
    logits = backbone.logits(torch.cat([prefix.hidden[:, None], hidden], dim=1))
    expected = torch.distributions.Categorical(logits=logits / 1.5).entropy()
    torch.testing.assert_close(out.entropies[out.valid], expected[out.valid], rtol=0, atol=1e-4)
    assert continue_ids(backbone, prefix, 12).entropies.abs().max() == 0  # greedy


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("at_once", [1, 7, 80, 1000])
def test_texts_do_not_depend_on_how_many_are_decoded_at_once(backbone, temperature, at_once):
    prefix = open_question(backbone, ["1,2:3", "44-19"], backbone.soa)
    whole = continue_ids(backbone, expand(prefix, 40), 12, temperature, Streams.of(0, [3, 4]))
    pieces = continue_ids(backbone, prefix, 12, temperature, Streams.of(0, [3, 4]), repeats=40, at_once=at_once)
    for name in ("ids", "valid", "finished"):
        assert torch.equal(getattr(pieces, name), getattr(whole, name))
    torch.testing.assert_close(pieces.entropies, whole.entropies, rtol=0, atol=1e-5)
    assert pieces.tokens_processed <= whole.tokens_processed  # each piece drops its own ended rows


@torch.no_grad()
def test_a_list_of_keys_and_values_is_given_away_and_a_tuple_is_kept(backbone):
    prefix = open_question(backbone, ["1,2:3"], backbone.soa)
    kept = [(k.clone(), v.clone()) for k, v in prefix.past]
    embeds, ones = backbone.embed(torch.tensor([[backbone.eos]])), torch.tensor([[True]])
    after_tuple, given = append(backbone, prefix, embeds, ones)[0], given_away(prefix)
    after_list = append(backbone, given, embeds, ones)[0]
    assert torch.equal(after_list.hidden, after_tuple.hidden)
    assert all(
        torch.equal(k, old_k) and torch.equal(v, old_v)
        for (k, v), (old_k, old_v) in zip(prefix.past, kept, strict=True)
    )
    assert sum(k.numel() + v.numel() for k, v in given.past) == 0


def test_characters_survive_the_round_trip():
    tokenizer = character_tokenizer(ALPHABET)
    text = "44-19=25,35+25=60 \n#"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("4x")["input_ids"][1] == tokenizer.unk_token_id


def test_texts_are_padded_as_transformers_does(backbone):
    texts = ["44-19=25", "", "7", "3*7=21,8"]
    for side, opening in (("left", True), ("right", False)):
        expected = backbone.tokenizer(
            texts, padding=True, padding_side=side, return_tensors="pt", add_special_tokens=False
        )
        ids, valid = backbone.tokenize(texts, opening=opening)
        assert torch.equal(ids, expected["input_ids"])
        assert torch.equal(valid, expected["attention_mask"].bool())


def test_saved_backbone_loads_with_its_tokenizer(backbone, tmp_path):
    backbone.save_pretrained(tmp_path)
    loaded = Backbone.from_pretrained(tmp_path)
    ids, _ = loaded.tokenize(["19,35:54"])
    assert ids.tolist() == backbone.tokenize(["19,35:54"])[0].tolist()
    torch.testing.assert_close(loaded.lm(ids).logits, backbone.lm(ids).logits, rtol=0, atol=1e-6)


def test_a_model_without_our_special_tokens_gets_them(backbone, tmp_path):
    """The same rows at every load, behind embeddings that stay as they are."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "4": 2, "19": 3}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    backbone.lm.resize_token_embeddings(4)
    backbone.lm.save_pretrained(tmp_path)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    plain.save_pretrained(tmp_path)
    first, second = Backbone.from_pretrained(tmp_path), Backbone.from_pretrained(tmp_path)
    assert (first.eos, first.pad, first.bot, first.eot, first.soa) == (1, 0, 4, 5, 6)
    rows = first.embed(torch.arange(7))
    assert torch.equal(rows[:4], backbone.embed(torch.arange(4)))
    assert torch.equal(rows, second.embed(torch.arange(7)))
    assert len(rows[4:].unique(dim=0)) == 3
    assert first.detokenize(torch.tensor([[2, first.soa, 3, first.eos]])) == ["4 19"]


FOREIGN = 12
"""Tokens of the tokenizer below."""


def foreign_model(folder: Path, family: str, vocab_size: int, tied: bool) -> dict[str, torch.Tensor]:
    """Saves a model whose tokenizer lacks our tokens and whose unused embeddings are tiny; returns its weights."""
    words = {word: i for i, word in enumerate(["<eos>", "<unk>", *"0123456789"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    make = {"qwen3": Qwen3Config, "llama": LlamaConfig}[family]
    config = make(vocab_size=vocab_size, tie_word_embeddings=tied, num_key_value_heads=2, head_dim=16, **sizes)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config)
        lm.get_input_embeddings().weight.mul_(5)
        lm.get_input_embeddings().weight[FOREIGN:].mul_(1e-6)
    tokens.save_pretrained(folder)
    lm.save_pretrained(folder)
    return {name: p.detach().clone() for name, p in lm.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab_size", [FOREIGN, FOREIGN + 1, FOREIGN + 8])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_tokens_that_a_model_lacks_are_as_large_as_others_whether_its_vocabulary_has_room_or_not(
    tmp_path, family, vocab_size, tied
):
    before = foreign_model(tmp_path / "foreign", family, vocab_size, tied)
    loaded, state = Backbone.from_pretrained(tmp_path / "foreign"), torch.get_rng_state()
    ids = [loaded.bot, loaded.eot, loaded.soa]
    assert ids == [FOREIGN, FOREIGN + 1, FOREIGN + 2]
    assert loaded.lm.config.vocab_size == max(vocab_size, FOREIGN + 3)
    table = loaded.lm.get_input_embeddings().weight
    rms = table.square().mean(1).sqrt()
    torch.testing.assert_close(rms[ids].mean(), rms[:FOREIGN].mean(), rtol=0.25, atol=0)
    assert (table[ids] @ table[ids].T / 32 / rms[ids].outer(rms[ids]) - torch.eye(3)).abs().max() < 0.5  # all differ
    for name, p in loaded.lm.named_parameters():
        rows = [i for i in range(len(before[name])) if len(before[name]) != vocab_size or i not in ids]
        assert torch.equal(p[rows], before[name][rows]), name
    torch.rand(7)  # what else was drawn does not matter
    assert weights_hash(Backbone.from_pretrained(tmp_path / "foreign")) == weights_hash(loaded)
    loaded.save_pretrained(tmp_path / "saved")
    assert weights_hash(Backbone.from_pretrained(tmp_path / "saved")) == weights_hash(loaded)
    torch.set_rng_state(state)


def test_another_family_is_refused(tmp_path):
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, is_decoder=True
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert' model; use a llama or qwen3"):
        Backbone.from_pretrained(tmp_path)


def test_lora_trains_few_parameters_and_merges_on_save(backbone, tmp_path):
    backbone.save_pretrained(tmp_path / "plain")
    backbone.add_lora(2)
    trainable = {name: p.numel() for name, p in backbone.named_parameters() if p.requires_grad}
    (tokens,) = (name for name in trainable if "lora" not in name)
    assert trainable[tokens] == 3 * backbone.width  # <bot>, <eot> and <soa>
    assert sum(trainable.values()) < sum(p.numel() for p in backbone.parameters()) / 4
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    ids, valid = backbone.tokenize(["19,35:54"])
    _, before = append(backbone, None, backbone.embed(ids), valid)
    backbone.save_pretrained(tmp_path)
    loaded = Backbone.from_pretrained(tmp_path)
    _, after = append(loaded, None, loaded.embed(ids), valid)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    _, plain = append(Backbone.from_pretrained(tmp_path / "plain"), None, loaded.embed(ids), valid)
    assert (after - plain).abs().max() > 1e-3  # the update was merged, not dropped


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_lora_trains_the_embeddings_of_our_tokens_and_no_others(tmp_path, family, tied):
    foreign_model(tmp_path / "foreign", family, FOREIGN + 8, tied)
    before, model = (Backbone.from_pretrained(tmp_path / "foreign") for _ in range(2))
    model.add_lora(2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids = torch.tensor([[3, model.bot, model.eot, model.soa, 7]])
    for _ in range(2):
        _, hidden = append(model, None, model.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        model.logits(hidden).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        _, hidden = append(model, None, model.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        logits = model.logits(hidden)
    model.save_pretrained(tmp_path / "trained")
    saved = Backbone.from_pretrained(tmp_path / "trained")
    ours = torch.zeros(FOREIGN + 8, dtype=torch.bool)
    ours[ids[0, 1:4]] = True
    old, new = (m.lm.get_input_embeddings().weight for m in (before, saved))
    assert ((new != old).any(1) == ours).all()
    head = saved.lm.get_output_embeddings().weight
    assert (head is new) == tied
    assert tied or torch.equal(head, before.lm.get_output_embeddings().weight)
    _, hidden = append(saved, None, saved.embed(ids), torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(saved.logits(hidden), logits, rtol=1e-5, atol=1e-5)


def test_lora_of_a_model_that_reads_none_of_our_tokens_leaves_them(backbone):
    backbone.add_lora(2, special_tokens=False)
    assert all("lora" in name for name, p in backbone.named_parameters() if p.requires_grad)


def test_recomputed_layers_give_the_same_gradients_and_keep_less(backbone):
    """Also through cached keys and values, and for a pass whose hidden states are not used."""
    ids = torch.randint(6, 26, (2, 9), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids, dtype=torch.bool)

    def gradients() -> tuple[dict[str, torch.Tensor], int]:
        kept = []
        backbone.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            prefix, _ = append(backbone, None, backbone.embed(ids[:, :4]), valid[:, :4])
            _, hidden = append(backbone, prefix, backbone.embed(ids[:, 4:]), valid[:, 4:])
        hidden.square().sum().backward()
        return {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}, sum(kept)

    plain, kept = gradients()
    backbone.recompute_layers()
    recomputed, kept_less = gradients()
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=0)
    assert kept_less < kept / 3


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="must be a multiple of num_heads"):
        BackboneConfig(width=30, num_heads=4)
