"""The losses of stages 1 and 2, which problems the VAE is measured on, and LoRA of the stages that train heads."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from ladi import cli
from ladi.bundled import ASSETS
from ladi.inference.text import alphabet
from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.vae import ThoughtVAE, ThoughtVAEConfig
from ladi.rundir import folder_fingerprint, read_metrics
from ladi.tasks import TaskConfig
from ladi.tasks.countdown import Countdown
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.jsonl import Jsonl
from ladi.train import reasoner as stage1
from ladi.train import rollout as stage2
from ladi.train import sft as stage_sft
from ladi.train import vae as stage_a
from ladi.train.data import DataConfig, EncodedBlocks, LatentCache, check_lengths
from ladi.train.loop import LoopConfig, Share
from ladi.train.reasoner import Batch, LossConfig
from ladi.train.rollout import RolloutConfig

BUNDLED = ASSETS / "cd3_tiny"
VALID = torch.tensor([[True, True], [True, False]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch(reasoner) -> Batch:
    latents = torch.randn(2, 2, 2, 4, generator=generator(1))
    question = reasoner.backbone.tokenize(["19,35,44:60", "5,7:12"], opening=True)
    answer = reasoner.backbone.tokenize(["44-19=25,35+25=60", "7+5=12"], add_eos=True)
    return Batch(question=question, answer=answer, target=latents, context=latents, block_valid=VALID)


@pytest.mark.parametrize("start_time", [(1.0, 1.0), (0.2, 0.5)])
def test_a_rollout_with_the_exact_velocity_ends_at_the_data(start_time):
    x0 = torch.randn(5, 2, 4, generator=generator())
    config = RolloutConfig(num_steps=7, start_time=start_time)
    made = stage2.denoise_block(lambda x, t: (x - x0) / t[:, None, None], x0, config, generator())
    torch.testing.assert_close(made, x0, rtol=0, atol=1e-5)


def answer_gradient(reasoner, batch, **fields):
    config = LossConfig(flow_weight=0.0, stop_weight=0.0, drop_question=0.0)
    value, _ = stage2.loss(reasoner, batch, generator(), config, RolloutConfig(num_steps=3, **fields))
    reasoner.zero_grad()
    value.backward()
    gradient = reasoner.velocity_head.weight.grad
    return 0.0 if gradient is None else gradient.abs().max().item()


def test_the_answer_loss_reaches_the_denoising_steps_when_asked(reasoner, batch):
    assert answer_gradient(reasoner, batch) > 0
    assert answer_gradient(reasoner, batch, denoising_gradient=False) == 0


def test_the_rollout_gradient_equals_finite_differences(reasoner, batch):
    """Checkpointed Euler steps, packed masks and caches, differentiated as one."""
    config = LossConfig(flow_weight=0.0, stop_weight=0.0, drop_question=0.0)

    def value():
        return stage2.loss(reasoner, batch, generator(), config, RolloutConfig(num_steps=3))[0]

    weight, direction = reasoner.velocity_head.weight, torch.randn(4, 32, generator=generator(5))
    reasoner.zero_grad()
    value().backward()
    expected = (weight.grad * direction).sum().item()
    step = 1e-3
    with torch.no_grad():
        weight += step * direction
        above = value().item()
        weight -= 2 * step * direction
        below = value().item()
    assert (above - below) / (2 * step) == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_the_flow_loss_of_a_zero_velocity_is_the_second_moment_of_the_target(reasoner, batch):
    with torch.no_grad():
        reasoner.velocity_head.weight.zero_()
        clean = reasoner.read(batch.question, batch.context, VALID, batch.answer)
        config = LossConfig(noise_draws=400)
        found = stage1.flow_loss(reasoner, clean.blocks, batch, config, generator())
    assert found.item() == pytest.approx(1 + batch.target[VALID].square().mean().item(), rel=0.05)


def test_blocks_that_are_padding_do_not_move_the_loss(reasoner, batch):
    config = LossConfig(drop_question=0.0)
    moved = batch.target.clone()
    moved[1, 1] += 5
    other = replace(batch, target=moved, context=moved)
    with torch.no_grad():
        terms = [stage1.loss(reasoner, b, generator(), config)[1] for b in (batch, other)]
    for name in terms[0]:
        torch.testing.assert_close(terms[0][name], terms[1][name])


def test_the_stop_loss_asks_for_the_answer_after_the_last_block(batch):
    logits = torch.tensor([[0.3, -0.2], [1.5, 9.0]])
    expected = binary_cross_entropy_with_logits(torch.tensor([0.3, -0.2, 1.5]), torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(stage1.stop_loss(logits, batch), expected)


def rows_of(batch: Batch, row: int) -> Batch:
    """One of the batch's two rows, as a micro-batch: it divides by half of the counts."""
    tokens = [tuple(x[row : row + 1] for x in part) for part in (batch.question, batch.answer)]
    latents = (x[row : row + 1] for x in (batch.target, batch.context, batch.block_valid))
    half = [float(mask.sum()) / 2 for mask in (batch.answer[1], batch.block_valid)]
    return Batch(*tokens, *latents, *half)


def test_micro_batches_weigh_by_their_tokens_and_blocks(reasoner, batch):
    """The mean over them is that over the whole batch: rows with few tokens do not weigh more a token."""
    logits, stops = torch.randn(2, 18, 30, generator=generator()), torch.randn(2, 2, generator=generator())
    parts = [rows_of(batch, i) for i in range(2)]
    for loss, given in ((stage1.answer_loss, logits), (stage1.stop_loss, stops)):
        mean = torch.stack([loss(given[i : i + 1], part) for i, part in enumerate(parts)]).mean()
        torch.testing.assert_close(mean, loss(given, batch))


@pytest.mark.parametrize("loss", [lambda *args: stage2.loss(*args, RolloutConfig(num_steps=2)), stage1.loss])
def test_the_losses_of_stages_1_and_2_divide_by_the_counts_that_they_are_given(reasoner, batch, loss):
    config, counts = LossConfig(drop_question=0.0), {"num_tokens": 10.0, "num_blocks": 6.0}
    _, own = loss(reasoner, batch, generator(), config)
    _, given = loss(reasoner, replace(batch, **counts), generator(), config)
    num_tokens = float(batch.answer[1].sum())
    for name, ratio in (("flow", 3 / 6), ("stop", 3 / 6), ("answer", num_tokens / 10)):
        torch.testing.assert_close(given[f"loss/{name}"], own[f"loss/{name}"] * ratio)


def test_targets_are_standardised_posterior_means_and_contexts_draws(vae):
    vae.latent_mean.fill_(1.0)
    vae.latent_std.fill_(2.0)
    encoded = EncodedBlocks(torch.full((1, 1, 2, 4), 3.0), torch.full((1, 1, 2, 4), -30.0), VALID[:1, :1])
    tokens = vae.encoder.tokenize(["1"])
    made = stage1.make_batch(vae.scale, encoded, (tokens, tokens), "mean", generator())
    torch.testing.assert_close(made.target, torch.ones(1, 1, 2, 4))
    torch.testing.assert_close(made.context, torch.ones(1, 1, 2, 4), rtol=0, atol=1e-5)


def test_cached_rows_are_cut_to_the_longest_of_them():
    cache = LatentCache(torch.zeros(3, 4, 2, 4), torch.zeros(3, 4, 2, 4), torch.tensor([1, 4, 2]))
    rows = cache.rows(torch.tensor([0, 2]), torch.device("cpu"))
    assert rows.mean.shape[1] == 2
    assert rows.valid.tolist() == [[True, False], [True, True]]


def test_beta_and_the_seen_context_rise_over_their_warm_ups_and_are_whole_from_the_first_step_without_one(tmp_path):
    assert [stage_a.risen(step, 4) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [stage_a.risen(step, 0) for step in range(2)] == [1, 1]
    config = one_step_vae(tmp_path, Countdown(size=3), 8, 16)
    config = replace(config, vae=replace(config.vae, reads_context=True), beta_warmup_steps=8, context_warmup_steps=4)
    vae = ThoughtVAE.from_backbone(config.vae, Backbone.from_pretrained(config.backbone_dir))
    batches = stage_a.batches_of(vae, config, config.data.examples(2, 0))
    shares = []
    for step in range(6):
        batches.prepare(step, Share(0, 2, lambda value: value))
        made = batches.batch_at(step, 0, 2)
        shares.append((made.beta_share, made.hidden_share))
    assert shares == [(0, 1), (0.125, 0.75), (0.25, 0.5), (0.375, 0.25), (0.5, 0), (0.625, 0)]


def test_a_warm_up_of_a_context_that_is_not_read_is_refused(tmp_path):
    config = one_step_vae(tmp_path, Countdown(size=3), 8, 16)
    with pytest.raises(ValueError, match="context_warmup_steps is 4, but this VAE reads no context"):
        replace(config, context_warmup_steps=4)
    with pytest.raises(ValueError, match="beta_warmup_steps must be at least 0, got -1"):
        replace(config, beta_warmup_steps=-1)


def one_step_vae(tmp_path: Path, task: TaskConfig, num_train: int, max_block_tokens: int, **fields) -> stage_a.Config:
    """The stage `vae` for one step, on a new tiny language model over the task's characters."""
    lm = BackboneConfig(width=16, num_layers=1, num_heads=2, mlp_width=32)
    Backbone.from_config(lm, alphabet(task)).save_pretrained(tmp_path / "lm")
    return stage_a.Config(
        out_dir=tmp_path / "vae",
        data=DataConfig(task=task, num_train=num_train),
        backbone_dir=tmp_path / "lm",
        vae=ThoughtVAEConfig(num_latents=1, latent_width=2, max_block_tokens=max_block_tokens),
        loop=LoopConfig(steps=1, batch_size=2, micro_batch_size=2),
        **fields,
    )


def test_the_vae_says_what_it_gives_back_and_below_the_gate_what_to_do(tmp_path):
    config = one_step_vae(tmp_path, Countdown(size=3), 8, 16)
    report = {"vae/exact_mean": 0.611, "vae/exact_sample": 0.598, "vae/kl": 1.95}
    said = stage_a.said(report, 1000, config)
    assert said.startswith("61.1 % of 1,000 held-out blocks come back exactly from the mean of their latents, 59.8 %")
    assert "a reasoner should have 99 %: train longer" in said
    assert "context" not in said
    reads = replace(config, vae=replace(config.vae, reads_context=True))
    assert "--context-warmup-steps" in stage_a.said(report, 1000, reads)
    assert "--context-warmup-steps" not in stage_a.said(report, 1000, replace(reads, context_warmup_steps=4))
    assert "should" not in stage_a.said(report | {"vae/exact_mean": 0.99}, 1000, config)


def unequal_rows(path: Path) -> Jsonl:
    """Eight rows, every second one with four times the steps."""
    rows = [
        {"question": f"1+{i}", "steps": [f"1+{i}={1 + i}"] * (1 + 3 * (i % 2)), "answer": str(1 + i)} for i in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return Jsonl(path=path, reserved=1e-6)


def test_texts_of_unequal_length_train_alike_in_micro_batches_of_any_size(tmp_path):
    """A mean over each micro-batch would count the tokens of short texts for more."""
    data, logged = DataConfig(task=unequal_rows(tmp_path / "my.jsonl"), num_train=8), []
    for micro in (1, 8):
        limits = LoopConfig(steps=3, batch_size=8, micro_batch_size=micro, log_every=1)
        stage_sft.main(stage_sft.Config(out_dir=tmp_path / f"{micro}", data=data, loop=limits))
        logged.append(read_metrics(tmp_path / f"{micro}"))
    for one, whole in zip(*logged, strict=True):
        assert one["loss/answer"] == pytest.approx(whole["loss/answer"], rel=1e-5)
        assert one["optim/grad_norm"] == pytest.approx(whole["optim/grad_norm"], rel=1e-4)


def test_chains_of_unequal_length_weigh_alike_in_the_vae_in_micro_batches_of_any_size(tmp_path):
    logged = []
    for micro in (1, 8):
        folder = tmp_path / f"{micro}"
        folder.mkdir()
        config = one_step_vae(folder, unequal_rows(folder / "my.jsonl"), 8, 8)
        stage_a.main(replace(config, loop=LoopConfig(steps=1, batch_size=8, micro_batch_size=micro)))
        logged.append(read_metrics(config.out_dir)[0]["loss/kl"])
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


def test_the_vae_is_measured_on_what_a_small_task_without_validation_split_has(tmp_path, monkeypatch):
    task = Gsm8k(path=str(Path(__file__).parents[1] / "fixtures"))
    seen, report = {}, dict.fromkeys(("vae/exact_mean", "vae/exact_sample", "vae/kl"), 1.0)
    for name in ("store_statistics", "reconstruction"):
        monkeypatch.setattr(stage_a, name, lambda vae, blocks, *_, name=name: seen.setdefault(name, blocks) and report)
    config = one_step_vae(tmp_path, task, 6, 200)
    assert (stage_a.main(config) / "config.json").is_file()
    assert sorted(block.text for block in seen["store_statistics"]) == sorted(
        step for i in range(6) for step in task.problem("train", i).steps
    )
    assert [block.text for block in seen["reconstruction"]] == [
        step for i in range(4) for step in task.problem("test", i).steps
    ]


def test_a_trained_vae_is_the_same_whatever_it_is_measured_on(tmp_path):
    task = Countdown(size=3, max_input=50)
    config = one_step_vae(tmp_path, task, 8, 14, gate_problems=1)
    stage_a.main(config)
    before = folder_fingerprint(tmp_path / "vae" / "final")
    report = (tmp_path / "vae" / "reconstruction.json").read_text()
    stage_a.main(replace(config, gate_problems=2))
    assert folder_fingerprint(tmp_path / "vae" / "final") == before
    assert (tmp_path / "vae" / "reconstruction.json").read_text() != report


def test_blocks_that_would_always_be_cut_are_named_before_the_vae_trains(tmp_path):
    task = Gsm8k(path=str(Path(__file__).parents[1] / "fixtures"))
    texts = [step for i in range(6) for step in task.problem("train", i).steps]  # of a tokenizer of characters
    longest = max(texts, key=len)
    config = one_step_vae(tmp_path, task, 6, 60)
    num_longer = sum(len(text) > 60 for text in texts)
    assert 0 < num_longer < len(texts)
    said = f"{num_longer} of {len(texts)} blocks have more than 60 tokens, the longest {len(longest)}: {longest[:60]!r}"
    with pytest.raises(ValueError, match=f"{re.escape(said)}; set --vae.max-block-tokens {len(longest)}"):
        stage_a.main(config)
    assert not (tmp_path / "vae" / "metrics.jsonl").exists()


@pytest.mark.parametrize("fields", [{"max_blocks": 1}, {"max_answer_tokens": 14}, {"max_answer_tokens": 9}], ids=str)
def test_problems_that_a_reasoner_cannot_write_are_named_before_it_trains(tmp_path, fields):
    task = Countdown(size=3, max_input=50)
    config = stage1.Config(
        out_dir=tmp_path / "reasoner",
        data=DataConfig(task=task, num_train=300_000),
        vae_dir=BUNDLED / "vae",
        backbone_dir=BUNDLED / "ar",
        latents_path=tmp_path / "latents.safetensors",
        loop=LoopConfig(steps=1, batch_size=2, micro_batch_size=2),
        **fields,
    )
    lengths = [len(task.problem("train", i).answer) for i in range(1000)]
    limit, longest = config.max_answer_tokens, max(lengths)
    said = f"{sum(n > limit for n in lengths)} of 1000 answers have more than {limit} tokens, the longest {longest}"
    if "max_blocks" in fields:
        said = "1000 of 1000 training problems have more than 1 blocks, the longest 2"
    with pytest.raises(ValueError, match=f"^{said}: .*; set --max-(blocks 2|answer-tokens {longest}), or leave"):
        stage1.main(config)
    assert not config.latents_path.exists()


@pytest.mark.parametrize("start_time", [(0.0, 0.5), (0.6, 0.5), (0.5, 1.5)])
def test_a_start_time_outside_its_range_is_refused(start_time):
    with pytest.raises(ValueError, match="start_time"):
        RolloutConfig(start_time=start_time)


@pytest.mark.parametrize(
    ("stage", "start", "arguments"),
    [
        (
            "reasoner",
            "ar",
            f"--backbone-dir {BUNDLED}/ar --vae-dir {BUNDLED}/vae --latents-path ROOT/latents.safetensors",
        ),
        (
            "rl",
            "stage1/backbone",
            f"--model-dir {BUNDLED}/stage1 --policy.num-latents 2 --policy.texts-per-latent 2 --policy.num-steps 3 "
            "--policy.replay-steps 1 --reward.functions tests.train.test_dlr:even_digits",
        ),
    ],
)
def test_lora_changes_matrices_by_its_rank_and_trains_the_heads_in_full(tmp_path, monkeypatch, stage, start, arguments):
    loop = (
        "--loop.steps 2 --loop.batch-size 4 --loop.micro-batch-size 4 --loop.gradient-checkpointing "
        "--loop.optim.name adamw --loop.optim.lr 1e-3 --loop.optim.warmup-steps 1"
    )
    command = (
        f"train {stage} --preset cd3_tiny --out-dir {tmp_path} --lora-rank 2 --data.num-train 8 {arguments} {loop}"
    )
    monkeypatch.setattr(sys, "argv", ["ladi", *command.replace("ROOT", str(tmp_path)).split()])
    cli.main()
    before = load_file(BUNDLED / start / "model.safetensors")
    for name, weight in load_file(tmp_path / "final" / "backbone" / "model.safetensors").items():
        change = weight - before[name]
        if name.endswith("proj.weight"):
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 2, name
        elif name.endswith("embed_tokens.weight"):
            assert change.any(1).nonzero().flatten().tolist() == [3, 4, 5]  # <bot>, <eot>, <soa>
        else:
            assert not change.any(), name
    heads = load_file(tmp_path / "final" / "heads.safetensors")
    old = load_file(BUNDLED / "stage1" / "heads.safetensors") if stage == "rl" else {}
    for name in ("velocity_head.weight", "latent_in.weight", "time.mlp.0.weight"):
        assert torch.linalg.matrix_rank(heads[name] - old.get(name, 0.0), rtol=1e-3) > 2


def test_a_few_longer_texts_are_told_and_let_pass(capsys):
    lengths = [3] * 95 + [9, 8, 7, 7, 7]
    texts = [f"text {i}" for i in range(100)]
    check_lengths("answers", texts, lengths, "tokens", 6, "--max-answer-tokens", 0.05)
    assert "5 of 100 answers have more than 6 tokens, the longest 9" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'text 95'; set --max-answer-tokens 9"):
        check_lengths("answers", texts, lengths, "tokens", 6, "--max-answer-tokens", 0.04)
