"""What a stage says of its data before it trains, and which data cached latents belong to."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from ladi.bundled import ASSETS
from ladi.models.reasoner import LatentReasoner
from ladi.rundir import folder_fingerprint, latest_checkpoint
from ladi.tasks import TaskConfig
from ladi.tasks.arithmetic import Arithmetic
from ladi.tasks.code import Code
from ladi.tasks.countdown import Countdown
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.jsonl import Jsonl, read_rows, split_rows
from ladi.tasks.math import Math
from ladi.tasks.sandbox import Limits
from ladi.train import presets
from ladi.train.data import (
    DataConfig,
    Examples,
    ProblemBatches,
    ValidationConfig,
    inputs_of,
    latents_fingerprint,
    precompute_latents,
    with_latents,
)
from ladi.train.loop import Share
from ladi.train.reasoner import batches_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
MATH_PATH = str(FIXTURES / "math500_test.jsonl")


def test_the_overlap_of_training_and_test_is_printed(capsys):
    DataConfig(task=Gsm8k(path=str(FIXTURES)), num_train=8).check()
    assert capsys.readouterr().out == "0 of 4 test questions also occur in training\n"
    DataConfig(task=Math(train_path=MATH_PATH, test_path=MATH_PATH), num_train=5).check()
    assert capsys.readouterr().out == "5 of 7 test questions also occur in training\n"


def test_an_endless_task_is_not_read_through(capsys):
    DataConfig(task=Arithmetic()).check()
    assert capsys.readouterr().out == ""


def test_too_few_problems_are_refused():
    with pytest.raises(ValueError, match="num_train is 9, but the task has 8"):
        DataConfig(task=Gsm8k(path=str(FIXTURES)), num_train=9).check()


def test_all_problems_of_a_finite_task_need_no_count(capsys):
    task = Gsm8k(path=str(FIXTURES))
    every, counted = (DataConfig(task=task, num_train=number) for number in (0, 8))
    for data in (every, counted):
        data.check()
        assert "0 of 4 test" in capsys.readouterr().out
    assert every.size == len(every.sample()) == 8
    for step in range(4):
        problems = [data.examples(3, seed=1).problems(step, 0, 3) for data in (every, counted)]
        assert problems[0] == problems[1]


def read_indices(data: DataConfig, num_steps: int, seed: int) -> list[int]:
    """What that many steps of three examples read, by two processes."""
    shares = [(step, *share) for step in range(num_steps) for share in ((0, 2), (2, 3))]
    examples = data.examples(3, seed)
    return [i for step, *share in shares for i in examples.indices(step, *share).tolist()]


def test_every_pass_over_a_finite_task_reads_all_of_it_in_an_order_of_its_own():
    """Rows of a file may be sorted, as those of MATH are by subject."""
    data = DataConfig(task=Gsm8k(path=str(FIXTURES)), num_train=8)
    one, other = read_indices(data, 8, seed=0), read_indices(data, 8, seed=1)  # three passes of eight
    passes = [tuple(seen[i : i + 8]) for seen in (one, other) for i in (0, 8, 16)]
    assert all(sorted(order) == list(range(8)) for order in passes)
    assert len({*passes, tuple(range(8))}) == 7
    problems = [problem for step in range(8) for problem in data.examples(3, seed=0).problems(step, 0, 3)]
    assert problems == [data.task.problem("train", i) for i in one]


def test_problems_of_an_endless_task_keep_their_order():
    data = DataConfig(task=Arithmetic(), num_train=8)
    assert read_indices(data, 8, seed=3) == [*range(8)] * 3


@pytest.mark.parametrize("task", [Countdown(size=3, max_input=50), Gsm8k(path=str(FIXTURES))])
def test_problems_that_workers_make_ahead_are_those_of_their_steps(task):
    data = DataConfig(task=task, num_train=8, num_workers=2)
    batches = ProblemBatches(data.examples(3, seed=0), lambda some: some, lambda problems, _: [])
    alone = replace(data, num_workers=0).examples(3, seed=0)
    random = torch.get_rng_state()
    for step in (0, 1, 2, 5, 6, 5):  # a resumed run begins anywhere
        batches.prepare(step, Share(1, 3, lambda x: x))
        assert batches.batch_at(step, 1, 3).problems == alone.problems(step, 1, 3)
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(ValueError, match="num_workers must not be negative, got -1"):
        replace(data, num_workers=-1)


def test_a_signal_to_all_processes_of_a_run_ends_them_with_a_checkpoint(tmp_path):
    """As Ctrl-C in a terminal and as launchers send it."""
    size = ["--backbone.width", "16", "--backbone.mlp-width", "16", "--backbone.num-layers", "1"]
    loop = ["--loop.batch-size", "4", "--loop.micro-batch-size", "4", "--loop.log-every", "1"]
    command = ["train", "sft", *size, *loop, "--data.num-workers", "2", "--out-dir", str(tmp_path)]
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    main = psutil.Popen([sys.executable, "-m", "ladi.cli", *command], **pipes)
    assert main.stdout.readline().startswith("sft 1/")
    workers = main.children()
    assert len(workers) == 2
    os.killpg(main.pid, signal.SIGTERM)
    _, said = main.communicate(timeout=60)
    assert main.returncode == 128 + signal.SIGTERM
    assert "stopped at step" in said
    assert latest_checkpoint(tmp_path) is not None
    assert not any(worker.is_running() for worker in workers)


def test_latents_are_those_of_their_problems_whoever_makes_them(tmp_path):
    data = DataConfig(task=Countdown(size=3, max_input=50), num_train=7)
    vae_dir = ASSETS / "cd3_tiny" / "vae"
    alone = precompute_latents(vae_dir, data, tmp_path / "alone", 2, chunk=3)
    helped = precompute_latents(vae_dir, replace(data, num_workers=2), tmp_path / "helped", 2, chunk=3)
    assert torch.equal(alone.mean, helped.mean)
    assert torch.equal(alone.log_var, helped.log_var)
    precompute_latents(vae_dir, replace(data, num_workers=1), tmp_path / "alone", 2)  # are not another VAE's


def test_validation_takes_other_problems_than_training_and_always_the_same(tmp_path):
    path = tmp_path / "my.jsonl"
    rows = [{"question": f"{i}+1?", "steps": [f"{i}+1={i + 1}"], "answer": str(i + 1)} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(task=Jsonl(path=path, reserved=0.5), num_train=0)

    def questions(examples: Examples, step: int) -> list[str]:
        return [problem.question for problem in examples.problems(step, 0, examples.batch_size)]

    held_out = [problem.question for problem in data.task.read("validation")]
    six, every = (ValidationConfig(every=1, num_problems=number).examples(data.task) for number in (6, 1000))
    assert questions(six, 0) == questions(six, 5)
    assert len(set(questions(six, 0))) == 6
    assert set(questions(six, 0)) < set(held_out)
    assert questions(six, 0) != held_out[:6], "rows of a file may be sorted"
    assert sorted(questions(every, 0)) == sorted(held_out)
    assert not set(held_out) & set(questions(data.examples(data.size, seed=0), 0))


def test_the_noise_of_validation_is_the_same_at_every_step():
    stage, task = presets.cd3_tiny().reasoner, Countdown(size=3, max_input=50)
    config = replace(stage, vae_dir=ASSETS / "cd3_tiny" / "vae")
    model = LatentReasoner.from_pretrained(ASSETS / "cd3_tiny" / "stage1")
    examples, latents = with_latents(ValidationConfig(every=1, num_problems=3).examples(task), task, config.vae_dir, 2)

    def drawn(examples: Examples, step: int) -> torch.Tensor:
        batches = batches_of(model, config, examples, latents)
        batches.prepare(step, Share(0, 3, lambda x: x))
        return batches.batch_at(step, 0, 3).context

    assert torch.equal(drawn(examples, 3), drawn(examples, 7))
    trained = replace(examples, is_held_out=False)
    assert not torch.equal(drawn(trained, 3), drawn(trained, 7))


def test_cached_latents_do_not_depend_on_how_programs_are_judged():
    mbpp = Code(path=str(FIXTURES / "mbpp.jsonl"))
    other = replace(mbpp, num_workers=1, limits=Limits(wall_s=30.0), allow_unsafe_exec=True)
    assert fingerprint(mbpp, 1) == fingerprint(other, 1)


def test_validation_without_a_split_is_refused_with_those_there_are():
    task = Gsm8k(path=str(FIXTURES))
    with pytest.raises(ValueError, match=r"gsm8k has no split 'validation' to validate on; set .* one of test, or"):
        ValidationConfig(every=5).examples(task)
    assert ValidationConfig(every=5, split="test").examples(task).batch_size == 4
    with pytest.raises(ValueError, match="no split 'train'"):
        ValidationConfig(every=5, split="train").examples(task)
    assert ValidationConfig().of(task, lambda examples: None) is None
    with pytest.raises(ValueError, match="got -1 and 512"):
        ValidationConfig(every=-1)


def test_all_problems_of_an_endless_task_are_refused_and_so_is_a_negative_number():
    data = DataConfig(task=Arithmetic(), num_train=0)
    with pytest.raises(ValueError, match="arithmetic is endless; set it, to"):
        data.check()
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        DataConfig(task=Arithmetic(), num_train=-1)


def test_a_file_whose_rows_are_all_reserved_is_refused(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps({"question": "1+1?", "steps": ["1+1=2"], "answer": "2"}))
    with pytest.raises(ValueError, match="no training problems"):
        DataConfig(task=Jsonl(path=path, reserved=0.999), num_train=0).check()


def fingerprint(task: TaskConfig, num_train: int) -> str:
    read_rows.cache_clear()  # as in another process
    split_rows.cache_clear()
    return latents_fingerprint(ASSETS / "cd3_tiny" / "vae", DataConfig(task=task, num_train=num_train), 2)


def test_cached_latents_belong_to_the_texts_of_a_file_and_not_to_its_name(tmp_path):
    path = tmp_path / "my.jsonl"
    rows = [{"question": f"{i}+1?", "steps": [f"{i}+1={i + 1}"], "answer": str(i + 1)} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = Jsonl(path=path)
    before = fingerprint(task, 10)
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert fingerprint(task, 10) == before
    for row in rows:
        row["steps"] = [*row["steps"], "done"]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert fingerprint(task, 10) != before


def test_latents_of_the_generated_puzzles_that_are_kept_somewhere_stay_valid():
    """What the bundled models' caches are named by."""
    kept = "71dad6f8bcc2b7f8021dbb3bc5c195d16f027ba99612a72ead4c87b6a7bcc330"
    assert fingerprint(Countdown(size=3, max_input=50), 300_000) == kept


def test_a_stage_is_named_by_what_it_reads(tmp_path):
    task = write_sums(tmp_path / "my.jsonl", 20)
    stage = replace(presets.cd3_tiny(tmp_path).grpo, data=DataConfig(task=task, num_train=5))
    stage = replace(stage, model_dir=Path("assets/cd3_tiny/ar"))
    before = inputs_of(stage)
    assert before.keys() == {"data", "model_dir"}
    assert before["model_dir"] == folder_fingerprint(ASSETS / "cd3_tiny" / "ar")
    write_sums(tmp_path / "my.jsonl", 20, answer="seven")
    read_rows.cache_clear()
    split_rows.cache_clear()
    after = inputs_of(stage)
    assert (after["data"] != before["data"], after["model_dir"]) == (True, before["model_dir"])
    assert inputs_of(presets.cd3_tiny(tmp_path).sft) == {}


def write_sums(path: Path, number: int, answer: str = "") -> Jsonl:
    rows = [{"question": f"{i}+1?", "steps": ["s"], "answer": answer or str(i + 1)} for i in range(number)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return Jsonl(path=path)
