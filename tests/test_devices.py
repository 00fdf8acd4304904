"""Every stage and command on a pretend GPU: nothing is computed on the CPU, nothing is mixed."""

import sys
from pathlib import Path

import pytest
import torch

from ladi import cli, devices, doctor
from ladi.inference.models import load_model
from ladi.models.backbone import Backbone
from ladi.models.reasoner import LatentReasoner
from tests.pretend_device import PRETEND, place, pretend_device

A, TINY = "assets/cd3_tiny", "--preset cd3_tiny"
SHORT = "--data.num-train 16 --loop.batch-size 4 --loop.micro-batch-size 2 --loop.steps 2 --loop.checkpoint-every 2"
LATENT = f"--model-dir {A}/stage1 --policy.num-latents 3 --policy.texts-per-latent 2 --policy.num-steps 3 {SHORT}"
EVAL = "eval --num-questions 3 --num-samples 2 --ks 1 2 --sample.num-steps 2"
COMMANDS = {
    "sft": f"train sft --backbone.width 32 --backbone.num-layers 1 --backbone.num-heads 2 {SHORT}",
    "sft_adamw": f"train sft --backbone.width 32 --backbone.num-layers 1 --backbone.num-heads 2 {SHORT} "
    "--loop.optim.name adamw --loop.gradient-checkpointing",
    "vae": f"train vae {TINY} --backbone-dir {A}/ar --statistics-problems 16 --gate-problems 4 {SHORT}",
    "reasoner": f"train reasoner {TINY} --backbone-dir {A}/ar --vae-dir {A}/vae --latents-path OUT/latents {SHORT}",
    "reasoner_lora": f"train reasoner {TINY} --backbone-dir {A}/ar --vae-dir {A}/vae --latents-path OUT/latents "
    f"{SHORT} --lora-rank 2 --loss.hide-question 0.5 --loss.target sample",
    "rollout": f"train rollout {TINY} --reasoner-dir {A}/stage1 --vae-dir {A}/vae --latents-path OUT/latents {SHORT}",
    "rl": f"train rl {LATENT}",
    "rl_everything": f"train rl {LATENT} --policy.beta 0.1 --policy.guidance 0.3 --policy.num-iterations 2 "
    "--policy.replay-steps 1 --policy.replay-copies 4 --policy.replay-texts 4",
    "rl_flow_loss": f"train rl {LATENT} --policy.density flow_loss --policy.noise-level 0 --policy.replay-copies 4",
    "grpo": f"train grpo --model-dir {A}/ar --policy.num-generations 4 --policy.beta 0.1 {SHORT}",
    "dlr_warmup": f"train dlr-warmup --preset dlr_cd3 --main {A}/ar --free-steps 1 --beta-warmup-steps 0 {SHORT}",
    "dlr": f"train dlr --preset dlr_cd3 --model-dir WARM --policy.num-generations 4 --policy.num-decoded 2 "
    f"--policy.filter value --policy.beta 0.1 --policy.gamma 0.1 {SHORT}",
    "dlr_main": f"train dlr --preset dlr_cd3 --model-dir WARM --policy.num-generations 4 --policy.num-decoded 2 "
    f"--policy.filter random --policy.contrast projected --policy.gamma 0.1 --policy.text-weight 1.0 "
    f"--policy.temperature 1.0 --train-main {SHORT}",
    "eval": f"{EVAL} --model-dir {A}/stage1 --latent-use-samples 2 --sample.guidance 0.3",
    "eval_vae": f"{EVAL} --model-dir {A}/stage1 --readout vae --dtype bfloat16",
    "eval_ar": f"{EVAL} --model-dir {A}/ar --sample.temperature 1.0 --latent-use-samples 0",
    "eval_dlr": f"{EVAL} --preset dlr_cd3 --model-dir WARM --latent-use-samples 2",
    "sample": "sample 19,35,44:60 --num-latents 2 --num-steps 2 --show-denoising",
    "bench": "bench --copies 2 --batch-size 2 --repeats 1 --precision bf16 --question-tokens 5 --answer-tokens 4",
    "bench_rl": "bench rl --questions 1 --updates 1 --no-trl",
}


def run(monkeypatch, command: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ladi", *command.split()])
    cli.main()


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Path:
    """A warm-started assistant, made on the CPU."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, f"{COMMANDS['dlr_warmup']} --out-dir {folder}")
    return folder / "final"


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_is_computed_on_the_accelerator(name, warm, monkeypatch, tmp_path):
    command = COMMANDS[name].replace("WARM", str(warm)).replace("OUT", str(tmp_path))
    if command.startswith("train"):
        command += f" --out-dir {tmp_path / 'run'}"
    with pretend_device(monkeypatch) as operations:
        run(monkeypatch, command)
    assert operations.products["cuda"] > 100
    assert operations.products["cpu"] == 0


def test_the_vae_of_a_reasoner_is_where_the_reasoner_is(monkeypatch):
    with pretend_device(monkeypatch):
        reasoner = LatentReasoner.from_pretrained(f"{A}/stage1")
        assert reasoner.vae.queries.device.type == "cpu"
        assert reasoner.to("cuda").vae.queries.device == PRETEND


def test_a_model_left_behind_is_refused(monkeypatch):
    """The pretence itself: inputs and weights in two places."""
    with pretend_device(monkeypatch):
        backbone = load_model(f"{A}/ar")
        assert isinstance(backbone, Backbone)
        ids = torch.zeros(1, 3, dtype=torch.long)
        assert place(backbone.embed(ids.to("cuda"))) == PRETEND
        with pytest.raises(RuntimeError, match="cpu"):
            backbone.embed(ids)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())


def test_results_in_bfloat16_are_near_those_in_float32():
    texts = []
    for dtype in ("float32", "bfloat16"):
        model = load_model(f"{A}/stage1", dtype)
        assert isinstance(model, LatentReasoner)
        assert model.backbone.lm.dtype == getattr(torch, dtype)
        texts.append(model.generate(["19,35,44:60", "7,12,30:49"], num_latents=8, num_steps=10).texts)
    same = [a == b for rows in zip(*texts, strict=True) for a, b in zip(*rows, strict=True)]
    assert sum(same) >= 12


SLOW = "this CPU has no bf16 instructions"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_on_a_cpu_without_instructions_for_it_is_warned_of(has_bf16, monkeypatch, tmp_path, caplog, capsys):
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(doctor, "cpu_has_bf16", lambda: has_bf16)
    run(monkeypatch, f"{COMMANDS['sft']} --out-dir {tmp_path / 'fp32'}")
    load_model(f"{A}/ar")
    assert not caplog.text

    run(monkeypatch, f"{COMMANDS['sft']} --loop.precision bf16 --out-dir {tmp_path / 'bf16'}")
    assert (f"{SLOW}: bf16 takes many times as long as fp32 here; train with" in caplog.text) is not has_bf16
    caplog.clear()
    load_model(f"{A}/ar", "bfloat16")
    assert ("use --dtype float32" in caplog.text) is not has_bf16
    run(monkeypatch, "doctor")
    assert ("this CPU has no instructions for it" in capsys.readouterr().out) is not has_bf16


def test_an_accelerator_is_not_asked_for_the_cpus_instructions(monkeypatch, caplog):
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: False)
    devices.warn_of_slow_bf16(torch.device("cuda"), "")
    assert not caplog.text


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="reads the CPU's flags as Linux shows them")
def test_a_cpu_whose_flags_know_neither_bf16_nor_avx512_has_no_bf16():
    flags = Path("/proc/cpuinfo").read_text()
    if not any(name in flags for name in ("bf16", "avx512", "avx_ne_convert")):
        assert not devices.cpu_has_bf16()
    if "avx512_bf16" in flags:
        assert devices.cpu_has_bf16()
