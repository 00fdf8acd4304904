"""Two processes do what one does, with whole and with sharded weights: every stage, launched as torchrun launches it,
on the CPU (gloo).
"""

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
from ladi.train import loop, sharding
from ladi.train.policy import RolloutBuffer

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from ladi import cli
from ladi.train import loop, sharding
from tests.train.test_processes import commands
shard = sharding.shard
def checked(module, *args):
    total = sum(p.numel() for p in module.parameters() if p.requires_grad)
    hollow = shard(module, *args)
    held = sum(p.to_local().numel() for p in module.parameters() if p.requires_grad)
    print("sharded" if held < 0.6 * total else "not sharded")
    return hollow
sharding.shard = checked
loop.prune_checkpoints = lambda *_: None  # tests go on from one before the last
for args in commands(*sys.argv[1:]).values():
    sys.argv = ["ladi", *args]
    cli.main()
"""
TINY = "--backbone.width 32 --backbone.num-layers 1 --backbone.num-heads 2 --backbone.mlp-width 64"
LOOP = (
    "--data.num-train 40 --loop.batch-size 4 --loop.micro-batch-size 2 --loop.log-every 1 --loop.checkpoint-every 2 "
    "--loop.steps 3"
)
HELD_OUT = "--validation.every 2 --validation.num-problems 4"
REWARD = "--reward.functions tests.train.test_dlr:even_digits"
"""One with contrast for random models."""
STAGES = ("sft", "vae", "reasoner", "rollout", "grpo", "rl", "dlr-warmup", "dlr")
WAYS = {"one": (1, {}), "replicated": (2, {}), "sharded": (2, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})}
"""Processes, and what `accelerate launch` sets."""


def commands(out: str, root: str) -> dict[str, list[str]]:
    """The command line of every stage; they write to `out` and read what was written to `root`."""
    sft, latents = f"--backbone-dir {root}/sft/final", f"--latents-path {root}/latents.safetensors"
    vae, groups = f"--vae-dir {root}/vae/final", "--policy.scale-rewards batch"
    own = {
        "sft": TINY,
        "vae": f"{sft} --vae.num-latents 2 --vae.latent-width 4 --vae.decoder lora --statistics-problems 20 "
        "--gate-problems 10",
        "reasoner": f"{sft} {vae} {latents} --loop.gradient-checkpointing",
        "rollout": f"{vae} {latents} --reasoner-dir {root}/reasoner/final --rollout.num-steps 2",
        "grpo": f"--model-dir {root}/sft/final --policy.num-generations 4 --text.loss-type dapo {groups} {REWARD}",
        "rl": f"--model-dir {root}/reasoner/final --policy.num-latents 3 --policy.texts-per-latent 2 {groups} {REWARD} "
        "--policy.num-steps 3 --policy.replay-steps 1 --latent.loss-type dapo --lora-rank 2",
        "dlr-warmup": f"--main {root}/sft/final --assistant.num-latents 2 --assistant.latent-width 4 {TINY} "
        "--free-steps 1 --beta-warmup-steps 2",
        "dlr": f"--model-dir {root}/dlr-warmup/final --policy.num-generations 4 --policy.num-decoded 2 {REWARD} "
        "--policy.filter random",
    }
    watched = {stage: args if "--policy" in args else f"{args} {HELD_OUT}" for stage, args in own.items()}
    return {
        stage: ["train", stage, "--preset", "cd3_tiny", "--out-dir", f"{out}/{stage}", *f"{args} {LOOP}".split()]
        for stage, args in watched.items()
    }


def start(program: list[str], num_processes: int, settings: dict[str, str]) -> list[tuple[int, str]]:
    """Run a program of Python in that many processes, with these variables in their environment: how each ended, and
    what it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    group = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(num_processes):
        ranked = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
        env = {**os.environ, "PYTHONPATH": paths, **settings, **ranked}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", *program], env=env, **pipes))
    said = [process.communicate(timeout=280)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def launch(out: Path, root: Path, num_processes: int, settings: dict[str, str]) -> None:
    """Run all stages in that many processes, with these variables in their environment."""
    ended = start([SCRIPT, str(out), str(root)], num_processes, {"ACCELERATE_USE_CPU": "true", **settings})
    assert all(code == 0 for code, _ in ended), ended
    assert all(text.splitlines().count("sharded") == len(STAGES) * bool(settings) for _, text in ended)


def copy_interrupted(run: Path, to: Path) -> None:
    """A copy of a run as it would be had it been stopped after step 2 of 3."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / "step-00000003")
    shutil.rmtree(to / "final")


def logged(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    roots = {way: tmp_path_factory.mktemp(way) for way in WAYS}
    for way, (number, settings) in WAYS.items():
        for stage in ("vae", "grpo") if way == "sharded" else ():  # these go on from where one process stopped
            copy_interrupted(roots["one"] / stage, roots[way] / stage)
        launch(roots[way], roots["one"], number, settings)  # all start a stage from the same models
    return roots


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_two_processes_log_what_one_logs(runs, way, stage):
    one, two = (logged(runs[name] / stage) for name in ("one", way))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            rel = 0.2 if name.startswith("main/") else 1e-4  # padding, and rows that wait for others, cost too
            assert b[name] == pytest.approx(value, rel=rel, abs=1e-4), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_two_processes_train_the_weights_that_one_trains(runs, way, stage):
    """In what they hand on as in their checkpoints, moments and averages included, which hold whole tensors."""
    for path in (runs["one"] / stage).rglob("*.safetensors"):
        one, two = load_file(path), load_file(runs[way] / path.relative_to(runs["one"]))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            if name != "running_std":  # one process updates it for each micro-batch, two average theirs
                torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", ["sft", "rl"])
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_a_run_goes_on_with_another_number_of_processes(runs, tmp_path, monkeypatch, way, stage):
    """Two processes wrote a checkpoint; one goes on from there as if it had been alone from the start."""
    copy_interrupted(runs[way] / stage, tmp_path / stage)
    monkeypatch.setattr(sys, "argv", ["ladi", *commands(str(tmp_path), str(runs["one"]))[stage]])
    cli.main()
    for a, b in zip(logged(runs["one"] / stage), logged(tmp_path / stage), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"FSDP_VERSION": "1"}, "--fsdp-version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "without --fsdp-offload-params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--loop.gradient-checkpointing"),
    ],
)
def test_kinds_of_fsdp_that_are_not_supported_are_refused(monkeypatch, settings, said):
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", **settings}
    for name, value in fsdp.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        sharding.requested()


@pytest.mark.parametrize(
    ("number", "batch_size", "said"),
    [(3, 4, "multiple of the number of processes"), (4, 12, "no multiple of micro_batch_size")],
)
def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch, tmp_path, number, batch_size, said):
    monkeypatch.setattr(loop.Accelerator, "num_processes", number)
    settings = loop.LoopConfig(steps=1, batch_size=batch_size, micro_batch_size=2)
    with pytest.raises(ValueError, match=said):
        loop.run(
            settings, tmp_path, torch.nn.Linear(1, 1), RolloutBuffer(lambda *_: None, 1), lambda *_: None, label="x"
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes share the GPUs")
def test_processes_on_cpus_know_one_another_whatever_asks_first_or_are_refused():
    program = ["from ladi.devices import default_device, processes; default_device(); print(processes().num_processes)"]
    assert start(program, 2, {"ACCELERATE_USE_CPU": "1"}) == [(0, "2\n")] * 2
    for code, said in start(program, 2, {"ACCELERATE_USE_CPU": "0"}):
        assert code == 1
        assert "2 processes were started (WORLD_SIZE), but there is no accelerator to share" in said
