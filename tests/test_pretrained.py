"""Models whose tokenizers are built as published ones are: byte-level BPE, and SentencePiece with its own <s>."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from ladi.inference.models import load_model, sample_ar
from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.reasoner import LatentReasoner
from ladi.models.vae import ThoughtVAEConfig
from ladi.tasks.gsm8k import Gsm8k
from ladi.train import grpo, reasoner, sft, vae
from ladi.train.data import DataConfig
from ladi.train.loop import LoopConfig

FIXTURES = Path(__file__).parent / "fixtures"
ROWS = [json.loads(line) for line in (FIXTURES / "gsm8k_train.jsonl").read_text().splitlines()]
GSM8K = [row[name] for row in ROWS for name in ("question", "answer")]
ODD = [
    "1234567.50 , 3 . 4 ? ! don 't",
    "two  spaces   inside ",
    "\n#### 18",
    "a\n\nb\r\n\tc\n",
    "naïve café: ½ of 東京 🙂",
    "$<<48/2=24>>24",
]
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Qwen3's pieces of a text (without English contractions): every digit is one."""


def byte_level() -> PreTrainedTokenizerFast:
    """As Qwen3's: no <s>, no padding token of its own, and chat tokens beside the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    pieces = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(GSM8K, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", clean_up_tokenization_spaces=True
    )


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama-2's: spaces are a character, unknown characters are bytes, and <s> is put before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in GSM8K], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"] | {f"<0x{i:02X}>": len(model["vocab"]) + i for i in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer.model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    spaces = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(spaces)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["byte_level", "sentence_piece"])
def folder(request, tmp_path_factory) -> Path:
    """A random model and its tokenizer in the Hugging Face layout, without anything of ours."""
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = byte_level() if request.param == "byte_level" else sentence_piece()
    sizes = {
        # as the published models of Qwen3, more rows than tokens
        "vocab_size": 448 if request.param == "byte_level" else len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 32,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    config = Qwen3Config(**sizes) if request.param == "byte_level" else LlamaConfig(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def length(questions, texts, **columns):
    """A reward with contrast for a random model."""
    return [float(len(text)) for text in texts]


@pytest.fixture
def backbone(folder) -> Backbone:
    return Backbone.from_pretrained(folder).eval()


@pytest.mark.parametrize("text", [*GSM8K, *ODD])
def test_texts_survive_the_round_trip(backbone, text):
    ids, valid = backbone.tokenize([text, "1"], add_eos=True)
    assert backbone.detokenize(ids)[0] == text
    assert valid[0].all()


def test_a_leading_space_is_kept_but_for_the_one_that_sentence_piece_takes_for_its_own(backbone):
    back = backbone.detokenize(backbone.tokenize(["  two"])[0])[0]
    assert back == (" two" if backbone.tokenizer.bos_token else "  two")


def test_no_special_token_stands_in_a_text(backbone, folder):
    special = {*backbone.tokenizer.all_special_ids, backbone.bot, backbone.eot, backbone.soa}
    for add_eos in (False, True):
        ids, valid = backbone.tokenize([*GSM8K, *ODD], add_eos=add_eos)
        for row, real in zip(ids, valid, strict=True):
            tokens = row[real].tolist()
            assert not special & set(tokens[:-1] if add_eos else tokens)
            assert not add_eos or tokens[-1] == backbone.eos


def test_a_sequence_opens_as_the_tokenizer_begins_a_text(backbone, folder):
    plain = AutoTokenizer.from_pretrained(folder)
    assert (plain("1")["input_ids"][0] == plain.bos_token_id) == ("sentence_piece" in folder.name)
    ids, valid = backbone.tokenize([*GSM8K, *ODD], opening=True)
    assert valid[:, -1].all()
    for text, row, real in zip([*GSM8K, *ODD], ids, valid, strict=True):
        assert row[real].tolist() == plain(text)["input_ids"]


def test_our_tokens_are_new_and_come_back_from_a_saved_model(backbone, tmp_path):
    ours = (backbone.bot, backbone.eot, backbone.soa)
    assert len({*ours, backbone.eos}) == 4
    assert max(ours) < backbone.lm.config.vocab_size
    backbone.save_pretrained(tmp_path)
    again = Backbone.from_pretrained(tmp_path)
    assert (again.bot, again.eot, again.soa, again.eos, again.pad) == (*ours, backbone.eos, backbone.pad)
    assert torch.equal(again.tokenize(GSM8K)[0], backbone.tokenize(GSM8K)[0])
    assert torch.equal(again.embed(torch.tensor(ours)), backbone.embed(torch.tensor(ours)))


def test_special_tokens_and_rows_without_a_token_are_left_out_of_texts(backbone):
    (seven,) = backbone.tokenize(["7"])[0].tolist()
    unused = range(len(backbone.tokenizer), backbone.lm.config.vocab_size)
    special = [backbone.soa, *backbone.tokenizer.convert_tokens_to_ids(["<|im_start|>"] if unused else ["<s>"])]
    assert backbone.detokenize(torch.tensor([[*special, *seven, *unused, backbone.eos, *seven]])) == ["7"]


def test_four_stages_run_on_it(folder, tmp_path):
    data = DataConfig(task=Gsm8k(path=str(FIXTURES)), num_train=8)
    steps = LoopConfig(steps=2, batch_size=4, micro_batch_size=2, log_every=1, checkpoint_every=2)
    lm = sft.main(
        sft.Config(out_dir=tmp_path / "sft", data=data, backbone=BackboneConfig(name_or_path=str(folder)), loop=steps)
    )
    shape = ThoughtVAEConfig(num_latents=2, latent_width=4, max_block_tokens=96)
    autoencoder = vae.main(
        vae.Config(out_dir=tmp_path / "vae", data=data, backbone_dir=lm, vae=shape, gate_problems=1, loop=steps)
    )
    final = reasoner.main(
        reasoner.Config(
            out_dir=tmp_path / "reasoner",
            data=data,
            vae_dir=autoencoder,
            backbone_dir=lm,
            latents_path=tmp_path / "latents.safetensors",
            max_blocks=8,
            max_answer_tokens=16,
            loop=steps,
        )
    )
    policy = grpo.PolicyConfig(num_generations=4, max_completion_length=8)
    tuned = grpo.main(
        grpo.Config(out_dir=tmp_path / "grpo", data=data, model_dir=lm, policy=policy, loop=steps), [length]
    )
    for stage in ("sft", "vae", "reasoner", "grpo"):
        entries = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
        assert len(entries) == 2
        assert entries[-1]["optim/grad_norm"] > 0
    questions = [row["question"] for row in ROWS[:2]]
    thinker, writer = load_model(final), load_model(tuned)
    assert isinstance(thinker, LatentReasoner)
    assert isinstance(writer, Backbone)
    texts = thinker.generate(questions, num_latents=2, num_steps=2, seed=0).texts
    written, _ = sample_ar(writer, questions, 2, 8, 1.0, torch.Generator().manual_seed(0))
    for text in (text for row in (*texts, *written) for text in row):
        assert not any(token in text for token in ("<s>", "</s>", "<soa>", "<|endoftext|>", "<bot>", "<eot>"))
