"""Two processes do what one does: every stage, launched as torchrun launches it, on the CPU (gloo)."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ladi import cli
from ladi.train import loop

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from ladi import cli
from tests.train.test_processes import commands
for args in commands(sys.argv[1]).values():
    sys.argv = ["ladi", *args]
    cli.main()
"""
TINY = "--backbone.width 32 --backbone.num-layers 1 --backbone.num-heads 2 --backbone.mlp-width 64"
LOOP = (
    "--data.num-train 40 --loop.batch-size 4 --loop.micro-batch-size 2 --loop.log-every 1 --loop.checkpoint-every 2 "
    "--loop.steps 3"
)
REWARD = "--reward.functions tests.train.test_dlr:even_digits"
"""One with contrast for random models."""
STAGES = ("sft", "vae", "reasoner", "rollout", "grpo", "rl", "dlr-warmup", "dlr")


def commands(root: str) -> dict[str, list[str]]:
    """The command line of every stage."""
    sft, latents = f"--backbone-dir {root}/sft/final", f"--latents-path {root}/latents.safetensors"
    vae, groups = f"--vae-dir {root}/vae/final", "--policy.scale-rewards batch"
    own = {
        "sft": TINY,
        "vae": f"{sft} --vae.num-latents 2 --vae.latent-width 4 --statistics-problems 20 --gate-problems 10",
        "reasoner": f"{sft} {vae} {latents}",
        "rollout": f"{vae} {latents} --reasoner-dir {root}/reasoner/final --rollout.num-steps 2",
        "grpo": f"--model-dir {root}/sft/final --policy.num-generations 4 --text.loss-type dapo {groups} {REWARD}",
        "rl": f"--model-dir {root}/reasoner/final --policy.num-latents 3 --policy.texts-per-latent 2 {groups} {REWARD} "
        "--policy.num-steps 3 --policy.replay-steps 1 --latent.loss-type dapo",
        "dlr-warmup": f"--main {root}/sft/final --assistant.num-latents 2 --assistant.latent-width 4 {TINY}",
        "dlr": f"--model-dir {root}/dlr-warmup/final --policy.num-generations 4 --policy.num-decoded 2 {REWARD} "
        "--policy.filter random",
    }
    return {
        stage: ["train", stage, "--preset", "cd3_tiny", "--out-dir", f"{root}/{stage}", *f"{args} {LOOP}".split()]
        for stage, args in own.items()
    }


def launch(root: Path, num_processes: int) -> None:
    """Run all stages in that many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "ACCELERATE_USE_CPU": "true"}
    group = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", SCRIPT, str(root)]
    processes = []
    for rank in range(num_processes):
        ranked = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env={**env, **ranked}, **pipes))
    said = [process.communicate(timeout=280)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), said


def logged(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time/step_s"} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    roots = {number: tmp_path_factory.mktemp(f"p{number}") for number in (1, 2)}
    for number, root in roots.items():
        launch(root, number)
    return roots


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_log_what_one_logs(runs, stage):
    one, two = (logged(runs[number] / stage) for number in (1, 2))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            rel = 0.2 if name.startswith("main/") else 1e-4  # padding, and rows that wait for others, cost too
            assert b[name] == pytest.approx(value, rel=rel, abs=1e-4), name


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_the_weights_that_one_trains(runs, stage):
    for path in (runs[1] / stage / "final").rglob("*.safetensors"):
        one = load_file(path)
        two = load_file(runs[2] / stage / "final" / path.relative_to(runs[1] / stage / "final"))
        for name, tensor in one.items():
            if name != "running_std":  # one process updates it for each micro-batch, two average theirs
                torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_run_goes_on_with_another_number_of_processes(runs, tmp_path, monkeypatch, stage):
    """Two processes wrote a checkpoint; one goes on from there as if it had been alone from the start."""
    root = tmp_path / "root"
    shutil.copytree(runs[2], root)
    shutil.rmtree(root / stage / "checkpoints" / "step-00000003")
    shutil.rmtree(root / stage / "final")
    config = root / stage / "config.json"
    config.write_text(config.read_text().replace(str(runs[2]), str(root)))
    monkeypatch.setattr(sys, "argv", ["ladi", *commands(str(root))[stage]])
    cli.main()
    for a, b in zip(logged(runs[1] / stage), logged(root / stage), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(loop.Accelerator, "num_processes", 3)
    settings = loop.LoopConfig(steps=1, batch_size=4, micro_batch_size=2)
    with pytest.raises(ValueError, match="multiple of the number of processes"):
        loop.run(settings, tmp_path, torch.nn.Linear(1, 1), lambda *_: None, lambda *_: None, label="x")
