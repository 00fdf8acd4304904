"""Every stage through the command line, a few steps each, on a tiny model; resume; errors a user can make."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from safetensors import safe_open

from ladi import cli
from ladi.models.assistant import AssistantConfig, LatentAssistant
from ladi.rundir import folder_fingerprint
from ladi.tasks.jsonl import Jsonl
from tests.conftest import tiny_backbone

TINY = ["--data.num-train", "64", "--loop.batch-size", "8", "--loop.micro-batch-size", "4"]
STAGES = {
    "sft": ["--backbone.width", "32", "--backbone.num-layers", "1", "--backbone.num-heads", "2"],
    "vae": ["--statistics-problems", "32", "--gate-problems", "8", "--vae.latent-width", "4"],
    "reasoner": [],
    "rollout": ["--rollout.num-steps", "2"],
}


def ladi(monkeypatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ladi", *map(str, args)])
    cli.main()


def folders(root: Path, stage: str) -> list[str]:
    """Where a stage reads and writes below `root`."""
    args = ["--out-dir", root / stage]
    if stage in ("vae", "reasoner"):
        args += ["--backbone-dir", root / "sft" / "final"]
    if stage in ("reasoner", "rollout"):
        args += ["--vae-dir", root / "vae" / "final"]
    if stage == "rollout":
        args += ["--reasoner-dir", root / "reasoner" / "final"]
    if stage in ("reasoner", "rollout"):
        args += ["--latents-path", root / "latents.safetensors"]
    return [str(a) for a in args]


def train(monkeypatch, root: Path, stage: str, *more: str) -> Path:
    args = [
        *folders(root, stage),
        *STAGES[stage],
        *TINY,
        "--loop.steps",
        "4",
        "--loop.checkpoint-every",
        "2",
        *more,
    ]
    ladi(monkeypatch, "train", stage, "--preset", "cd3_tiny", *args)
    return root / stage


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for stage in STAGES:
            train(monkeypatch, root, stage)
    return root


def test_every_stage_writes_its_run_folder(trained):
    for stage in STAGES:
        run = trained / stage
        assert json.loads((run / "config.json").read_text())["loop"]["steps"] == 4
        assert json.loads((run / "provenance.json").read_text())["machine"]
        assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [4]
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
        assert (run / "final" / "config.json").is_file()


def test_no_pickle_is_written(trained):
    suffixes = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert not suffixes & {".pt", ".bin", ".pkl", ".pth"}


@pytest.mark.parametrize("readout", ["text", "vae"])
def test_eval_writes_the_promised_record(trained, monkeypatch, tmp_path, readout):
    args = [
        "--model-dir",
        trained / "rollout" / "final",
        "--num-questions",
        "4",
        "--num-samples",
        "4",
        "--ks",
        "1",
        "4",
    ]
    more = [
        "--sample.num-steps",
        "2",
        "--latent-use-samples",
        "2",
        "--readout",
        readout,
        "--json",
        tmp_path / "e.json",
    ]
    ladi(monkeypatch, "eval", *args, *more)
    record = json.loads((tmp_path / "e.json").read_text())
    assert set(record["pass@k"]) == {"1", "4"}
    assert set(record["pass@k"]["1"]) == {"value", "low", "high"}
    assert set(record["latent_use"]) == {"intact", "zeroed", "shuffled", "noise"}
    assert record["tokens_processed"] > 0
    assert record["wall_s"] > 0
    assert "distinct_valid" in record


def test_eval_writes_what_the_report_draws_of_denoising(trained, monkeypatch, tmp_path):
    sizes = ["--num-questions", "2", "--num-samples", "2", "--ks", "1", "--sample.num-steps", "2"]
    for name in ("rollout", "sft"):
        args = [
            *sizes,
            "--model-dir",
            trained / name / "final",
            "--denoising",
            tmp_path / name / "eval" / "denoising.json",
        ]
        if name == "sft":
            with pytest.raises(SystemExit):
                ladi(monkeypatch, "eval", *args)
        else:
            ladi(monkeypatch, "eval", *args)
    assert not (tmp_path / "sft").exists()
    ladi(monkeypatch, "report", tmp_path / "rollout", "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Puzzles being denoised" in page
    assert "Latents of one question" in page


def test_eval_of_the_token_level_model(trained, monkeypatch, tmp_path):
    args = [
        "--model-dir",
        trained / "sft" / "final",
        "--num-questions",
        "4",
        "--num-samples",
        "4",
        "--ks",
        "1",
        "4",
    ]
    ladi(
        monkeypatch,
        "eval",
        *args,
        "--latent-use-samples",
        "0",
        "--sample.temperature",
        "1.0",
        "--json",
        tmp_path / "e.json",
    )
    assert json.loads((tmp_path / "e.json").read_text())["label"] == "AR"


def test_sample_shows_answers_and_denoising(trained, monkeypatch, capsys):
    args = [
        "--model-dir",
        trained / "rollout" / "final",
        "--num-latents",
        "2",
        "--num-steps",
        "3",
        "--show-denoising",
    ]
    ladi(monkeypatch, "sample", "19,35,44:60", *args)
    printed = capsys.readouterr().out
    assert "trajectory 2" in printed
    assert "1.00" in printed


def test_report_of_all_stages(trained, monkeypatch, tmp_path):
    runs = [trained / stage for stage in STAGES]
    ladi(monkeypatch, "report", *runs, "--out", tmp_path / "report.html")
    assert "loss/flow" in (tmp_path / "report.html").read_text()


def test_a_second_configuration_in_the_same_folder_is_refused(trained, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        train(monkeypatch, trained, "sft", "--loop.seed", "7")
    assert stop.value.code == 2
    assert "loop.seed" in capsys.readouterr().err


def test_a_finished_stage_stays_as_it_is_and_is_refused_where_what_it_read_has_changed(monkeypatch, capsys, tmp_path):
    for stage in ("sft", "vae"):
        train(monkeypatch, tmp_path, stage)
    made = folder_fingerprint(tmp_path / "vae" / "final")
    capsys.readouterr()
    train(monkeypatch, tmp_path, "vae")
    assert "finished before, nothing to train: " in capsys.readouterr().out
    shutil.rmtree(tmp_path / "sft")
    train(monkeypatch, tmp_path, "sft", "--backbone.seed", "3")
    with pytest.raises(SystemExit):
        train(monkeypatch, tmp_path, "vae")
    assert "what backbone_dir names has changed since" in capsys.readouterr().err
    assert folder_fingerprint(tmp_path / "vae" / "final") == made


def test_a_finished_stage_whose_checkpoints_were_deleted_is_not_trained_anew(monkeypatch, capsys, tmp_path):
    train(monkeypatch, tmp_path, "sft")
    shutil.rmtree(tmp_path / "sft" / "checkpoints")
    metrics = (tmp_path / "sft" / "metrics.jsonl").read_text()
    capsys.readouterr()
    train(monkeypatch, tmp_path, "sft")
    assert "finished before, nothing to train: " in capsys.readouterr().out
    assert (tmp_path / "sft" / "metrics.jsonl").read_text() == metrics
    assert not (tmp_path / "sft" / "checkpoints").exists()
    with pytest.raises(SystemExit):
        train(monkeypatch, tmp_path, "sft", "--loop.seed", "7")


def test_a_run_named_as_a_model_is_refused_with_its_model(trained, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for args in (["eval", "--model-dir"], ["train", "rl", "--model-dir"], ["train", "vae", "--backbone-dir"]):
        with pytest.raises(SystemExit):
            ladi(monkeypatch, *args, trained / "sft")
        assert f"sft is the folder of a run; its model is {trained / 'sft' / 'final'}" in capsys.readouterr().err


def test_latents_of_another_vae_are_refused(trained, monkeypatch, capsys, tmp_path):
    train(monkeypatch, tmp_path, "sft")
    train(monkeypatch, tmp_path, "vae", "--loop.seed", "5")
    latents = ["--latents-path", str(trained / "latents.safetensors")]
    with pytest.raises(SystemExit):
        train(monkeypatch, tmp_path, "reasoner", *latents)
    assert "another VAE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["train"], "needs a stage"),
        (["train", "sft", "--preset", "cd9"], "unknown preset 'cd9'"),
        (["train", "sft", "--preset=cd9"], "unknown preset 'cd9'"),
        (["train", "vae", "--backbone-dir", "nowhere"], "cannot load the model nowhere: "),
        (["eval", "--num-samples", "4"], "from 1 to num_samples (4)"),
        (["sample", "1,2,3:6", "--num-latents", "0"], "num_latents must be at least 1, got 0"),
        (["eval", "--model-dir", "nowhere"], "no folder nowhere"),
        (["sample", "1,2,3:6", "--model-dir", "nowhere"], "no folder nowhere"),
        (["bench", "--preset", "cd9"], "unknown preset 'cd9'"),
        (["bench", "--question-tokens", "5"], "answer_tokens (0) go together"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_one_line(monkeypatch, capsys, tmp_path, args, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # else a hub that cannot be reached is asked for a minute
    with pytest.raises(SystemExit) as stop:
        ladi(monkeypatch, *args)
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


DEVICE = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE")


def chosen_devices(monkeypatch, has_mps: bool, **environment: str) -> list[str]:
    """Where Accelerate trains after a command has begun: asked for the number of processes first, or at once."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: has_mps)
    for name in DEVICE:
        monkeypatch.setenv(name, "")  # so that it is unset again at the end
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        ladi(monkeypatch, "eval", "--model-dir", "nowhere")
    devices = []
    for asks_first in (True, False):
        for state in (PartialState, AcceleratorState):
            monkeypatch.setattr(state, "_shared_state", {})
        if asks_first:
            PartialState()
        devices.append(Accelerator().device.type)
    return devices


def test_an_apple_gpu_is_taken_only_where_it_is_named(monkeypatch):
    """It has no float64; the test needs none, for nothing is moved there."""
    assert chosen_devices(monkeypatch, has_mps=True) == ["cpu", "cpu"]
    assert chosen_devices(monkeypatch, has_mps=True, ACCELERATE_USE_CPU="false") == ["mps", "mps"]
    assert chosen_devices(monkeypatch, has_mps=True, ACCELERATE_TORCH_DEVICE="mps") == ["mps", "mps"]
    chosen_devices(monkeypatch, has_mps=False)
    assert not set(DEVICE) & os.environ.keys()


def test_the_installed_command_lists_its_commands():
    done = subprocess.run([sys.executable, "-m", "ladi.cli", "--help"], capture_output=True, text=True, check=True)
    assert "ladi quickstart" in done.stdout


def test_a_file_goes_through_all_stages_without_its_number_of_rows(monkeypatch, tmp_path):
    path = tmp_path / "my.jsonl"
    rows = [{"question": f"{i}+1?", "steps": [f"{i}+0={i}", f"{i}+1={i + 1}"], "answer": "x"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    num_train = Jsonl(path=path).num_problems("train")
    assert 40 < num_train < 60
    loop = "--loop.steps 1 --loop.batch-size 8 --loop.micro-batch-size 8"
    for stage, own in STAGES.items():
        args = f"train {stage} --preset jsonl_small --data.task.path {path} {loop}".split()
        short = ["--vae.max-block-tokens", "12"] if stage == "vae" else []
        ladi(monkeypatch, *args, *own, *short, *folders(tmp_path, stage))
    with safe_open(tmp_path / "latents.safetensors", "pt") as file:
        assert file.get_slice("num_blocks").get_shape() == [num_train]
        assert file.get_tensor("num_blocks").tolist() == [2] * num_train


def test_a_reward_of_the_working_folder_is_found_where_python_does_not_look_there(tmp_path):
    (tmp_path / "my_rewards.py").write_text("def five(questions, texts, **columns):\n    return [5.0] * len(texts)\n")
    small = "--loop.steps 1 --loop.batch-size 2 --loop.micro-batch-size 2 --policy.num-generations 2"
    model = f"--model-dir assets/cd3_tiny/ar --policy.max-completion-length 4 --out-dir {tmp_path}/run"
    args = f"train grpo --preset cd3_tiny {model} {small} --reward.functions my_rewards:five"
    line = [sys.executable, "-P", "-m", "ladi.cli", *args.split()]  # -P: as the installed script, without the folder
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["reward/mean"] == 5


def test_dlr_from_warmup_to_samples(trained, monkeypatch, tmp_path, capsys):
    root, main = tmp_path, trained / "sft" / "final"
    small = ["--loop.steps", "2", "--loop.batch-size", "4", "--loop.micro-batch-size", "4"]
    tiny = ["--backbone.width", "16", "--backbone.num-layers", "1", "--backbone.num-heads", "2"]
    tiny += ["--assistant.num-latents", "2", "--assistant.latent-width", "4", "--assistant.max-answer-tokens", "6"]
    tiny += ["--free-steps", "1"]
    ladi(monkeypatch, "train", "dlr-warmup", "--main", main, "--out-dir", root / "warm", *small, *tiny)
    groups = ["--policy.num-generations", "6", "--policy.num-decoded", "2", "--policy.filter", "value"]
    model = ["--model-dir", root / "warm" / "final"]
    ladi(monkeypatch, "train", "dlr", *model, "--out-dir", root / "dlr", *small, *groups)
    entry = json.loads((root / "dlr" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 2 / 6 < entry["main/decoded_share"] < 1 / 2
    sizes = ["--num-questions", "3", "--num-samples", "4", "--ks", "1", "4", "--latent-use-samples", "2"]
    final = root / "dlr" / "final"
    ladi(monkeypatch, "eval", "--model-dir", final, *sizes, "--json", tmp_path / "e.json")
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["label"] == "DLR"
    assert record["main_model"]["forwards"] >= 3 * (1 + 4)
    assert set(record["latent_use"]) == {"intact", "zeroed", "shuffled", "noise"}
    ladi(monkeypatch, "sample", "1,2,3:6", "--run", root / "dlr", "--num-latents", "2")
    assert "2" in capsys.readouterr().out
    ladi(monkeypatch, "report", root / "dlr", "--out", tmp_path / "r.html")
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_a_main_model_that_has_moved_is_named(monkeypatch, tmp_path, capsys):
    config = AssistantConfig(num_latents=2, latent_width=3, max_answer_tokens=4)
    main = tiny_backbone()
    main.save_pretrained(tmp_path / "moved")
    assistant = LatentAssistant.from_backbones(config, tiny_backbone("llama"), main, str(tmp_path / "old"))
    assistant.save_pretrained(tmp_path / "saved")
    model, at = ("--model-dir", tmp_path / "saved"), ("--main", tmp_path / "moved")
    sample = ("sample", "1,2,3:6", "--num-latents", "2")
    evaluation = ("eval", "--num-questions", "2", "--num-samples", "2", "--ks", "1", "2", "--latent-use-samples", "0")
    for command in (sample, evaluation):
        ladi(monkeypatch, *command, *model, *at)
        with pytest.raises(SystemExit):
            ladi(monkeypatch, *command, *model)
        assert "say with main where it lies now" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ladi(monkeypatch, *sample, "--model-dir", tmp_path / "moved", *at)
    assert "is not an assistant" in capsys.readouterr().err
