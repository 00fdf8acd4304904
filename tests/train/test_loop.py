"""The loop on a small regression; the script below is also run in processes that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ladi.rundir import checkpoint_dir, latest_checkpoint, read_metrics
from ladi.train import loop
from ladi.train.checkpoint import State
from ladi.train.loop import LoopConfig
from ladi.train.optim import ALIKE, OptimConfig, learning_rate, make_optimizers

SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.train.test_loop import config, run
run(config(steps=40), Path(sys.argv[1]), pause_s=0.02)
"""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(3, 8)])})
        self.second = nn.Linear(8, 1)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))

    @property
    def first(self) -> nn.Linear:
        return self.body["layers"][0]


def config(**fields) -> LoopConfig:
    settings = {"steps": 6, "batch_size": 8, "micro_batch_size": 4, "checkpoint_every": 2, "log_every": 1}
    optim = OptimConfig(lr=0.01, warmup_steps=2, ema_decay=0.9)
    return LoopConfig(**{**settings, "optim": optim, **fields})


class Numbers:
    """Eight examples a step."""

    def __init__(self, pause_s: float = 0.0):
        self.pause_s = pause_s

    def prepare(self, step, share):
        """Nothing."""

    def batch_at(self, step, start, stop):
        time.sleep(self.pause_s)
        generator = torch.Generator().manual_seed(step)
        return torch.randn(8, 3, generator=generator)[start:stop]


def loss(model, batch, generator):
    noise = torch.randn(len(batch), 1, generator=generator)
    model.seen += len(batch)
    error = model.second(model.first(batch).tanh()) - batch.sum(1, keepdim=True) - 0.1 * noise
    return error.square().mean(), {"loss/square": error.square().mean()}


def rare(model, batch, generator):
    """A term that only some micro-batches have, and a largest value."""
    value, terms = loss(model, batch, generator)
    return value, terms | ({"rare/x": batch[0, 0]} if batch[0, 0] > 0 else {}) | {"rare/y_max": batch[0, 1]}


def run(settings: LoopConfig, run_dir: Path, pause_s: float = 0.0, loss=loss, **others):
    run_dir.mkdir(parents=True, exist_ok=True)
    return loop.run(settings, run_dir, Net(), Numbers(pause_s), loss, label="test", **others)


def last_tensors(run_dir):
    folder = latest_checkpoint(run_dir)
    return {f.name: load_file(f) for f in folder.glob("*.safetensors")}


def logged(run_dir):
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in read_metrics(run_dir)]


def assert_same_run(a, b):
    tensors_a, tensors_b = last_tensors(a), last_tensors(b)
    assert set(tensors_a) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    for name, tensors in tensors_a.items():
        assert set(tensors) == set(tensors_b[name])
        assert all(torch.equal(tensor, tensors_b[name][k]) for k, tensor in tensors.items()), name
    assert logged(a) == logged(b)


@pytest.mark.parametrize("decay", [0.0, 0.9], ids=["no average", "averaged"])
def test_validation_measures_the_weights_that_are_saved_and_changes_nothing(tmp_path, decay):
    """Three of eight examples, in micro-batches of two and one."""
    held_out = loop.Validation(every=4, num_examples=3, batches=Numbers())
    settings = config(micro_batch_size=2, log_every=6, optim=OptimConfig(lr=0.01, warmup_steps=2, ema_decay=decay))

    def plain(model, batch, generator):
        error = model.second(model.first(batch).tanh()) - batch.sum(1, keepdim=True)
        return error.square().mean(), {"loss/absolute": error.abs().mean()}

    alone = run(settings, tmp_path / "alone", loss=plain)
    net = run(settings, tmp_path / "watched", loss=plain, validation=held_out)
    assert all(map(torch.equal, alone.parameters(), net.parameters()))
    for file, tensors in last_tensors(tmp_path / "alone").items():
        assert all(torch.equal(x, last_tensors(tmp_path / "watched")[file][k]) for k, x in tensors.items())
    lines = logged(tmp_path / "watched")
    assert [line["step"] for line in lines] == [4, 6]
    value, terms = plain(net, Numbers().batch_at(6, 0, 3), None)
    assert lines[1]["validation/loss/total"] == pytest.approx(value.item(), rel=1e-5)
    assert lines[1]["validation/loss/absolute"] == pytest.approx(terms["loss/absolute"].item(), rel=1e-5)
    assert lines[0]["validation/loss/total"] != lines[1]["validation/loss/total"]
    assert "loss/total" in lines[0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_that_failed_midway_resumes_to_the_uninterrupted_one(tmp_path, name):
    settings = config(optim=OptimConfig(name=name, lr=0.01, warmup_steps=2, ema_decay=0.9))

    def broken(model, batch, generator):
        if model.seen >= 8 * 5:
            raise RuntimeError("power cut")
        return loss(model, batch, generator)

    run(settings, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(settings, tmp_path / "cut", loss=broken)
    assert latest_checkpoint(tmp_path / "cut") == checkpoint_dir(tmp_path / "cut", 4)
    run(settings, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_rest_of_a_run_may_be_logged_and_kept_otherwise(tmp_path):
    def broken(model, batch, generator):
        if model.seen >= 8 * 3:
            raise RuntimeError("power cut")
        return loss(model, batch, generator)

    run(config(), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(config(), tmp_path / "cut", loss=broken)
    run(config(log_every=4, checkpoint_every=5, keep_checkpoints=1), tmp_path / "cut")
    whole, cut = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "cut")
    for file, tensors in whole.items():
        assert all(torch.equal(tensor, cut[file][name]) for name, tensor in tensors.items()), file
    assert [line["step"] for line in logged(tmp_path / "cut")] == [1, 2, 4, 6]


def test_muon_turns_the_gradient_of_a_layer_into_an_orthogonal_step_as_long_as_adamws(tmp_path):
    optim = OptimConfig(name="muon", lr=0.01, warmup_steps=1, ema_decay=0.0, weight_decay=0.0)
    start, net = Net(), run(config(steps=1, optim=optim), tmp_path)
    step = torch.linalg.svdvals(net.first.weight - start.first.weight)
    torch.testing.assert_close(step, torch.full((3,), 0.01 * 0.2 * 8**0.5), rtol=0.35, atol=0)  # 5 rounds of iteration
    changed = (net.second.weight - start.second.weight).abs()
    torch.testing.assert_close(changed, torch.full_like(changed, 0.01), rtol=1e-3, atol=0)  # AdamW's first step


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_muon_on_a_cpu_is_its_polynomial_of_the_singular_values_in_fp32(shape):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    start, gradient = weight.detach().clone(), torch.randn(shape)
    weight.grad = gradient.clone()
    optim = OptimConfig(name="muon", lr=0.1, weight_decay=0.0)
    (muon,) = make_optimizers({"body.layers.0.weight": weight}, optim, ALIKE)
    muon.step()
    u, sizes, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    sizes = sizes / sizes.norm()
    for _ in range(5):
        sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
    expected = -0.1 * 0.2 * 20**0.5 * (u * sizes) @ v
    torch.testing.assert_close((weight.detach() - start).double(), expected, rtol=0, atol=2e-6)
    assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_to_the_uninterrupted_run(tmp_path, number):
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SCRIPT.format(tests=root), str(tmp_path / "cut")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    while latest_checkpoint(tmp_path / "cut") is None and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert "run the same command to go on" in said
    else:
        assert process.returncode == -9
    assert json.loads((latest_checkpoint(tmp_path / "cut") / "state.json").read_text())["step"] < 40
    run(config(steps=40), tmp_path / "cut")
    run(config(steps=40), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_returns_its_averaged_weights_again(tmp_path):
    first, again = (run(config(), tmp_path) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.equal(
        first.first.weight, load_file(latest_checkpoint(tmp_path) / "ema.safetensors")["body.layers.0.weight"]
    )


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    def plain(model, batch, generator):
        error = model.second(model.first(batch).tanh()) - batch.sum(1, keepdim=True)
        return error.square().mean(), {}

    nets = [run(config(micro_batch_size=size), tmp_path / str(size), loss=plain) for size in (2, 8)]
    torch.testing.assert_close(nets[0].first.weight, nets[1].first.weight)


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 6, 8, 12, 24])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 6])
def test_micro_batches_are_of_one_size_in_all_processes_or_refused(micro, num_processes):
    settings = config(batch_size=24, micro_batch_size=micro)
    whole = 24 // num_processes
    pieces = torch.ones(whole).split(micro)
    if len({len(piece) for piece in pieces}) == 1:
        assert loop.share_size(settings, num_processes) == whole
    else:
        with pytest.raises(ValueError, match=r"set micro_batch_size \d+$") as error:
            loop.share_size(settings, num_processes)
        fitting = int(str(error.value).split()[-1])
        assert 1 < fitting < micro
        assert loop.share_size(config(batch_size=24, micro_batch_size=fitting), num_processes) == whole


def test_the_average_is_that_of_its_closed_form(tmp_path):
    weights = []

    def watched(model, batch, generator):
        weights.append(model.first.weight.detach().clone())
        return loss(model, batch, generator)

    run(config(steps=3, micro_batch_size=8, checkpoint_every=1, keep_checkpoints=3), tmp_path, loss=watched)
    expected = weights[0]
    for step in range(3):
        after = load_file(checkpoint_dir(tmp_path, step + 1) / "model.safetensors")["body.layers.0.weight"]
        expected = expected + (after - expected) * (1 - min(0.9, (1 + step) / (10 + step)))
    found = load_file(checkpoint_dir(tmp_path, 3) / "ema.safetensors")["body.layers.0.weight"]
    torch.testing.assert_close(found, expected)


def test_the_learning_rate_warms_up_and_decays_to_its_fraction():
    optim = OptimConfig(lr=1.0, warmup_steps=10, final_lr_fraction=0.1)
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5499, abs=0.01)  # half way down the cosine


def test_a_loss_that_is_not_finite_stops_with_everything_named_and_nothing_lost(tmp_path):
    def bad(model, batch, generator):
        value, metrics = loss(model, batch, generator)
        return (value * float("nan") if model.seen > 8 * 3 else value), metrics

    with pytest.raises(FloatingPointError) as error:
        run(config(), tmp_path, loss=bad)
    for part in ("step 3", "loss/total=nan", "examples 24 to 31", "step-00000002"):
        assert part in str(error.value)
    weights = load_file(checkpoint_dir(tmp_path, 2) / "model.safetensors")
    assert all(t.isfinite().all() for t in weights.values())


def test_frozen_weights_are_neither_changed_nor_stored(tmp_path):
    before, net = Net().frozen.weight.clone(), run(config(), tmp_path)
    assert torch.equal(net.frozen.weight, before)
    for tensors in last_tensors(tmp_path).values():
        assert not any("frozen" in name for name in tensors)


def test_a_name_is_averaged_over_what_has_it_and_a_maximum_is_the_largest(tmp_path):
    run(config(log_every=6), tmp_path, loss=rare)
    firsts = torch.stack([Numbers().batch_at(step, start, start + 4)[0] for step in range(6) for start in (0, 4)])
    (line,) = read_metrics(tmp_path)
    some = firsts[:, 0][firsts[:, 0] > 0].view(-1)
    assert 0 < len(some) < 12
    steps = [x[x > 0] for x in firsts[:, 0].view(6, 2)]
    expected = sum(float(x.mean()) for x in steps if len(x)) / sum(len(x) > 0 for x in steps)
    assert line["rare/x"] == pytest.approx(expected)
    assert line["rare/y_max"] == pytest.approx(float(firsts[:, 1].max()))


def test_old_checkpoints_are_dropped_and_nothing_is_pickled(tmp_path):
    run(config(), tmp_path)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000004", "step-00000006"]
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= {".json", ".jsonl", ".safetensors"}


def test_a_finished_run_keeps_its_newest_checkpoint_from_which_a_longer_one_goes_on(tmp_path):
    net = run(config(), tmp_path)
    net.save_pretrained = lambda folder: (folder / "config.json").write_text("{}")
    assert loop.save_final(net, tmp_path) == tmp_path / "final"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]
    run(config(steps=8), tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_checkpoint_is_as_large_as_is_said_with_an_average_or_without(tmp_path, decay):
    optim = OptimConfig(lr=0.01, warmup_steps=2, ema_decay=decay)
    run(config(optim=optim), tmp_path)
    tensors = [t for file in last_tensors(tmp_path).values() for t in file.values() if t.ndim]  # numbers do not count
    assert sum(t.nbytes for t in tensors) == State(Net(), optim, ALIKE).num_bytes()


def test_too_little_disk_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("ladi.rundir.shutil.disk_usage", lambda path: type("usage", (), {"free": 100})())
    with pytest.raises(OSError, match="MB free"):
        run(config(), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_bf16_keeps_fp32_weights(tmp_path):
    net = run(config(precision="bf16"), tmp_path)
    assert net.first.weight.dtype == torch.float32


def test_tf32_is_allowed_within_its_run_only(tmp_path):
    """What it does to matrix products, a GPU decides."""
    seen = []

    def watched(model, batch, generator):
        seen.append(torch.get_float32_matmul_precision())
        return loss(model, batch, generator)

    before = torch.get_float32_matmul_precision()
    for precision in ("fp32", "tf32"):
        run(config(precision=precision, steps=1, checkpoint_every=1), tmp_path / precision, loss=watched)
        assert torch.get_float32_matmul_precision() == before
    assert seen == [before] * 2 + ["high"] * 2


def test_a_tracker_gets_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    run(config(trackers=("tensorboard",)), tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"micro_batch_size": 3}, "multiple of micro_batch_size"),
        ({"trackers": ("mlflow",)}, "unknown tracker 'mlflow'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1, got 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1, got 0"),
    ],
)
def test_contradictions_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        config(**fields)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(loop, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        config(trackers=("wandb",))


def test_step_generators_differ_by_seed_step_and_index():
    draws = {
        float(torch.rand((), generator=loop.step_generator(*key)))
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(draws) == 4
