"""Faults: each ends in a clear error or in an exact resume, and nothing that was written is lost.

    fault                                              here              elsewhere
    kill -9 at a random write to the run's folder      every stage
    kill -9 or SIGTERM once there is a checkpoint      -                 train/test_loop.py
    kill -9 in the middle of a rollout                 rl, grpo, dlr     train/test_rl.py, train/test_dlr.py: exceptions
    full disk (a small tmpfs)                          what a run writes
    too little disk at the start                       -                 train/test_loop.py
    damaged newest checkpoint, damaged latents         every file
    a loss that is not finite                          every stage       train/test_loop.py: weights stay finite
    a reward that raises or hangs                      rl, grpo, dlr     train/test_rl.py: all it can return
    malformed JSONL                                    -                 tasks/test_data_tasks.py
    problems without steps, empty steps, long texts    what reads them   train/test_stages.py: too few problems
    tokenizers without pad, eos or our tokens          here
    tied embeddings (all our models) and untied ones   here
    network: no connection is tried, HF_HUB_OFFLINE    every stage

Stages run as `ladi train ...` in processes of their own, forked from a server that has imported everything. A fault is
a function that such a process calls first. No test waits for a time: processes are killed, and disks filled, by their
own writes (audit events) or rewards, and the random moments are drawn with fixed seeds.
"""

import errno
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from ladi import cli
from ladi.inference.text import blocks_of, sft_target
from ladi.models.assistant import weights_hash
from ladi.models.backbone import Backbone
from ladi.rundir import checkpoints, latest_checkpoint, read_metrics
from ladi.tasks.base import Problem
from ladi.tasks.countdown import Countdown
from ladi.tasks.sandbox_isolation import CLONE_NEWNS, CLONE_NEWUSER, MS_PRIVATE, MS_REC, call
from ladi.train import dlr, dlr_warmup, grpo, loop, reasoner, rewards, rl, rollout, sft, vae
from ladi.train.data import LatentCache, tokenize_pairs
from tests.train import test_loop
from tests.train.test_processes import TINY, commands

pytestmark = pytest.mark.timeout(1200)  # the first test waits for all stages, on however busy a machine
ROOT = Path(__file__).parents[1]
STAGES = {
    "sft": sft,
    "vae": vae,
    "reasoner": reasoner,
    "rollout": rollout,
    "grpo": grpo,
    "rl": rl,
    "dlr-warmup": dlr_warmup,
    "dlr": dlr,
}
LOOP = ["--loop.steps", "5", "--loop.keep-checkpoints", "9"]
"""Checkpoints of steps 2, 4 and 5, all kept until the run is finished."""
SERVER = multiprocessing.get_context("forkserver")
Fault = Callable[[], object]


# ---- processes ------------------------------------------------------------------------------------------------------


def process(args: list[str], said_path: str, faults: tuple[Fault, ...]) -> None:
    """In a process of its own: `ladi ARGS` after the faults have been prepared."""
    sys.stdout = sys.stderr = Path(said_path).open("w", buffering=1)  # noqa: SIM115 - open until the process ends
    torch.set_num_threads(1)
    sys.argv = ["ladi", *args]
    for fault in faults:
        fault()
    cli.main()


def ladi(folder: Path, args: list[str], *faults: Fault) -> tuple[int, str]:
    """The exit code and the output of `ladi ARGS`."""
    said = folder / "said.txt"
    child = SERVER.Process(target=process, args=(args, str(said), faults))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode, said.read_text()


def command(inputs: Path, stage: str, out: Path) -> list[str]:
    """`train STAGE ...` that reads earlier stages from `inputs` and writes everything below `out`."""
    own = ["--out-dir", str(out), *LOOP]
    if stage in ("reasoner", "rollout"):
        own += ["--latents-path", str(out / "latents.safetensors")]
    return [*commands(str(inputs), str(inputs))[stage], *own]


def on_write(folder: Path, act: Callable[[str], None]) -> None:
    """Call `act(path)` before each file or folder below `folder` is opened to write, made, renamed or removed."""
    acting = False

    def hook(event: str, args: tuple) -> None:
        nonlocal acting
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and not acting and str(args[0]).startswith(str(folder)):
            acting = True
            act(str(args[0]))
            acting = False

    sys.addaudithook(hook)


def count_writes(folder: Path, path: Path) -> None:
    """A byte in `path` for each write below `folder`."""
    counter = os.open(path, os.O_WRONLY | os.O_CREAT)
    on_write(folder, lambda _: os.write(counter, b"."))


def kill_at_write(folder: Path, number: int) -> None:
    """kill -9 before the write of that number below `folder`."""
    numbers = itertools.count(1)
    on_write(folder, lambda _: os.kill(os.getpid(), signal.SIGKILL) if next(numbers) == number else None)


def refuse_network() -> None:
    """Fail where a connection is tried."""

    def hook(event: str, args: tuple) -> None:
        is_local = event == "socket.connect" and isinstance(args[1], str | bytes)  # a path
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") and not is_local:
            print("network:", event, args[1:])
            os._exit(99)

    sys.addaudithook(hook)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    assert folder.is_dir()
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_result(run: Path, whole: Path) -> None:
    """Model and metrics are those of the uninterrupted run, bit for bit, and nothing half-made is left."""
    assert contents(run / "final") == contents(whole / "final")
    logs = [
        [{k: v for k, v in line.items() if not k.startswith("time/")} for line in read_metrics(r)] for r in (run, whole)
    ]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5]
    assert [path.name for path in checkpoints(run)] == ["step-00000005"]
    assert not [path for path in run.rglob("*") if path.name.startswith(".tmp-") or path.suffix == ".partial"]


def assert_stopped_with_checkpoint(run: Path, whole: Path, step: int) -> None:
    """The run ended without a model, and its newest checkpoint is the uninterrupted run's of that step."""
    assert not (run / "final").exists()
    newest = latest_checkpoint(run)
    assert newest is not None
    assert newest.name == f"step-{step:08d}"
    assert contents(newest) == contents(whole / "checkpoints" / newest.name)


@pytest.fixture(scope="module", autouse=True)
def server():
    """The process that stages are forked from; one thread, as a fork needs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        SERVER.set_forkserver_preload(["tests.test_faults"])
        start = SERVER.Process(target=int)
        start.start()
        start.join()
    return start.exitcode


def keep_all() -> None:
    """Checkpoints stay, also of a finished run: others are compared with them."""
    loop.prune_checkpoints = lambda *_: None


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """All stages, uninterrupted, that may not use the network; `STAGE.writes` has a byte for each write."""
    root = tmp_path_factory.mktemp("whole")
    for stage in STAGES:
        faults = keep_all, refuse_network, partial(count_writes, root / stage, root / f"{stage}.writes")
        code, said = ladi(root, command(root, stage, root / stage), *faults)
        assert code == 0, (stage, said)
    return root


# ---- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_twice_resumes_to_the_uninterrupted_one(whole, tmp_path, stage):
    chance = random.Random(stage)
    args, run = command(whole, stage, tmp_path / "run"), tmp_path / "run"
    for last in ((whole / f"{stage}.writes").stat().st_size, 8):  # even a finished run writes 8 times when repeated
        code, said = ladi(tmp_path, args, partial(kill_at_write, run, chance.randint(1, last)))
        assert code == -signal.SIGKILL, said
    code, said = ladi(tmp_path, args)
    assert code == 0, said
    assert_same_result(run, whole / stage)


@pytest.mark.parametrize("stage", ["rl", "grpo", "dlr"])
def test_a_stage_killed_in_the_middle_of_a_rollout_loses_that_rollout_only(whole, tmp_path, stage):
    """The third rollout, of which texts are drawn but no advantage is known; two updates are in a checkpoint."""
    args, run = command(whole, stage, tmp_path / "run"), tmp_path / "run"
    code, said = ladi(tmp_path, args, partial(break_reward, "kills", 2))
    assert code == -signal.SIGKILL, said
    assert_stopped_with_checkpoint(run, whole / stage, 2)
    assert [line["step"] for line in read_metrics(run)] == [1, 2]
    code, said = ladi(tmp_path, args)
    assert code == 0, said
    assert_same_result(run, whole / stage)


# ---- disk -----------------------------------------------------------------------------------------------------------


def mount_tmpfs(folder: Path) -> bool:
    """A disk of 16 MB at `folder`, that only this process sees; False where the system does not permit it."""
    folder.mkdir()
    user, group = os.geteuid(), os.getegid()
    try:
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        call("mount", b"none", b"/", 0, MS_REC | MS_PRIVATE, 0)
        call("mount", b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=16m")
    except OSError:
        return False
    return True


def starved(args: list[str], run: str, at: str, result: str) -> None:
    """In a process: `ladi ARGS` on a disk that is full from the write to a path that ends in `at` on; then with room
    again. The first output goes to RESULT/said.txt, the run to RESULT/run."""
    folder, ballast = Path(run), Path(run) / "ballast"
    has_disk, is_full = mount_tmpfs(folder), False

    def fill(path: str) -> None:
        nonlocal is_full
        is_full = is_full or (path.endswith(at) and not ballast.exists())
        if is_full and not has_disk:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if is_full and not ballast.exists():
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    on_write(folder, fill)
    with pytest.raises(SystemExit, match="2"):
        process(args, f"{result}/said.txt", ())
    is_full = False
    if has_disk:
        os.truncate(ballast, 0)
    process(args, f"{result}/again.txt", ())
    shutil.copytree(folder, f"{result}/run", ignore=shutil.ignore_patterns("ballast"))


@pytest.mark.parametrize(
    ("stage", "at", "said"),
    [
        ("sft", ".tmp-step-00000004", "checkpoints/step-00000004"),
        ("sft", ".tmp-final", "final"),
        ("sft", "/metrics.jsonl", "metrics.jsonl"),
        ("reasoner", ".tmp-config.json", "config.json"),
        ("vae", ".tmp-reconstruction.json", "reconstruction.json"),
    ],
    ids=lambda value: value.strip("/"),
)
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(whole, tmp_path, stage, at, said):
    run = tmp_path / "disk"
    child = SERVER.Process(target=starved, args=(command(whole, stage, run), str(run), at, str(tmp_path)))
    child.start()
    child.join()
    text = (tmp_path / "said.txt").read_text()
    assert child.exitcode == 0, text
    (line,) = [line for line in text.splitlines() if line.startswith("ladi: ")]
    assert f"cannot write {run / said}" in line
    assert "o space left" in line
    assert "free some space and run the same command" in line
    assert_same_result(tmp_path / "run", whole / stage)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "one bit": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "lost": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_without_it_the_run_resumes_from_the_one_before(tmp_path, name, damage):
    test_loop.run(test_loop.config(), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    newest = latest_checkpoint(tmp_path / "run")
    DAMAGES[damage](newest / name)
    damaged = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=f"{newest} is damaged; delete it, .* goes on from step-00000004"):
        test_loop.run(test_loop.config(), tmp_path / "run")
    assert contents(tmp_path / "run") == damaged
    shutil.rmtree(newest)
    test_loop.run(test_loop.config(), tmp_path / "run")
    test_loop.assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "emptied", "one bit"])
def test_damaged_latents_are_named(whole, tmp_path, damage):
    path = tmp_path / "latents.safetensors"
    shutil.copy(whole / "reasoner" / path.name, path)
    with safe_open(path, "pt") as file:
        fingerprint = file.metadata()["fingerprint"]
    assert len(LatentCache.load(path, fingerprint).num_blocks) == 40
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=f"{path} is damaged .*; delete it"):
        LatentCache.load(path, fingerprint)


# ---- what stages compute --------------------------------------------------------------------------------------------


def lose_numbers(stage: str, at: int) -> None:
    """Losses from call `at` on are NaN."""
    module, calls = STAGES[stage], itertools.count()
    plain = module.loss

    def loss(*args):
        value, terms = plain(*args)
        return value * (math.nan if next(calls) >= at else 1), terms

    module.loss = loss


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_that_is_not_finite_stops_with_its_examples_and_keeps_the_checkpoint(whole, tmp_path, stage):
    run = tmp_path / "run"
    args = command(whole, stage, run)
    if "--validation.every" in args:  # only calls of training are counted
        args += ["--validation.every", "0"]
    code, said = ladi(tmp_path, args, partial(lose_numbers, stage, 3 * 2 + 1))  # 2 calls a step
    assert code == 2, said
    assert "ladi: step 3 is not finite: loss/total=nan" in said
    assert "examples 12 to 15" in said
    assert f"last good checkpoint: {run}/checkpoints/step-00000002" in said
    assert_stopped_with_checkpoint(run, whole / stage, 2)


def test_examples_are_named_where_several_steps_share_a_rollout(whole, tmp_path):
    args = [*command(whole, "grpo", tmp_path / "run"), "--policy.num-iterations", "2"]
    _, said = ladi(tmp_path, args, partial(lose_numbers, "grpo", 3 * 2))
    assert "step 3 is not finite" in said
    assert "examples 4 to 7" in said


BROKEN_REWARDS = {
    "raises": (lambda *_, **__: 1 / 0, "raised ZeroDivisionError('division by zero') ("),
    "hangs": (lambda *_, **__: threading.Event().wait(), "took more than 0.05 s"),
    "kills": (lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL), ""),
}


def break_reward(how: str, at: int) -> None:
    """The reward breaks at call `at`."""
    plain, calls = rewards.Rewards._call, itertools.count()

    def _call(self, function, *args):
        if next(calls) == at:
            function = BROKEN_REWARDS[how][0]
            self.config = replace(self.config, time_limit=0.05)
        return plain(self, function, *args)

    rewards.Rewards._call = _call


@pytest.mark.parametrize(("stage", "how"), [("rl", "raises"), ("grpo", "hangs"), ("dlr", "raises")])
def test_a_broken_reward_stops_the_stage_which_goes_on_with_a_sound_one(whole, tmp_path, stage, how):
    args, run = command(whole, stage, tmp_path / "run"), tmp_path / "run"
    code, said = ladi(tmp_path, args, partial(break_reward, how, 3))
    assert code == 2, said
    assert "ladi: reward '<lambda>' " + BROKEN_REWARDS[how][1] in said
    assert "first sample: question '" in said
    assert "run the same command to go on from the last checkpoint" in said
    assert how == "hangs" or f"{Path(__file__).name}, line " in said
    assert_stopped_with_checkpoint(run, whole / stage, 2)
    code, said = ladi(tmp_path, args)
    assert code == 0, said
    assert_same_result(run, whole / stage)


# ---- what stages read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(), ("",), ("1+1=2", " \n")], ids=repr)
@pytest.mark.parametrize("block", ["step", "whole"])
def test_problems_without_steps_teach_no_latents(steps, block):
    problem = Problem(question="what is left?", steps=steps, answer="2")
    if block == "whole" and "1+1=2" in steps:
        assert [b.text for b in blocks_of(problem, block, ",")] == ["1+1=2, \n"]
        return
    with pytest.raises(ValueError, match=r"'what is left\?' has .*; give it some or leave it out"):
        blocks_of(problem, block, ",")
    assert sft_target(problem, Countdown()) == "2"


def jsonl(path: Path, length: int) -> list[str]:
    """Flags of `ladi train sft` on rows of which one question is `length` characters long."""
    rows = [{"question": f"{i}+1?", "cot": f"{i}+1={i + 1}", "answer": str(i + 1)} for i in range(60)]
    rows[7]["question"] += "7" * (length - len(rows[7]["question"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = f"{TINY} --data.num-train 50 --loop.batch-size 50 --loop.micro-batch-size 50 --loop.steps 1"
    return f"train sft --preset jsonl_small --data.task.path {path} {sizes}".split()


@pytest.mark.parametrize(("length", "said"), [(70, "70 tokens"), (62, "tokens"), (40, "")])
def test_a_question_too_long_for_the_model_is_named_whether_alone_or_with_its_answer(tmp_path, length, said):
    args = [*jsonl(tmp_path / "rows.jsonl", length), "--backbone.max-positions", "64"]
    code, text = ladi(tmp_path, [*args, "--out-dir", str(tmp_path / "run")])
    assert code == (2 if said else 0), text
    if said:
        assert f"{said}, but the model has 64 positions: '7+1?777" in text
        assert "leave this problem out, or take a model with more" in text


ALPHABET = "0123456789+-*/=,:# \n"


def foreign_model(folder: Path, tied: bool, **tokens: str) -> None:
    """A small Llama whose tokenizer has none of our special tokens, and of its own only `tokens`."""
    words = ["<pad>", "<eos>", "<unk>", *ALPHABET]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **tokens).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = LlamaConfig(vocab_size=len(words), tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def test_a_tokenizer_without_pad_is_padded_with_what_is_masked(tmp_path):
    losses = []
    for tokens in ({"eos_token": "<eos>", "pad_token": "<pad>"}, {"eos_token": "<eos>"}):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            foreign_model(tmp_path, True, **tokens)
        backbone = Backbone.from_pretrained(tmp_path)
        batch = sft.Batch(*tokenize_pairs(backbone, ["1+1", "17+25*3"], ["2", "92=92"]))
        losses.append(float(sft.loss(backbone, batch, torch.Generator())[0].detach()))
        assert (backbone.pad == backbone.eos) == ("pad_token" not in tokens)
    assert losses[0] == losses[1]


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    foreign_model(tmp_path, True)
    with pytest.raises(ValueError, match=f"{tmp_path} has no end-of-text token; set eos_token"):
        Backbone.from_pretrained(tmp_path)


def test_tokens_that_a_model_lacks_are_the_same_at_every_load(tmp_path):
    foreign_model(tmp_path, False, eos_token="<eos>")
    first, second = (Backbone.from_pretrained(tmp_path) for _ in range(2))
    assert first.lm.config.vocab_size == 23 + 3
    assert weights_hash(first) == weights_hash(second)


@pytest.mark.parametrize("tied", [True, False])
def test_pretrained_models_resume_and_keep_their_embeddings_tied_or_not(tmp_path, tied):
    """LoRA starts from the embeddings of our tokens as they were drawn at loading, so that these must be the same."""
    foreign_model(tmp_path / "lm", tied, eos_token="<eos>")
    own = ["--backbone.name-or-path", str(tmp_path / "lm"), "--lora-rank", "2"]
    args, cut = ([*command(tmp_path, "sft", tmp_path / run), *own] for run in ("whole", "cut"))
    assert ladi(tmp_path, args)[0] == 0
    assert ladi(tmp_path, cut, partial(kill_at_write, tmp_path / "cut", 14))[0] == -signal.SIGKILL
    assert ladi(tmp_path, cut)[0] == 0
    assert_same_result(tmp_path / "cut", tmp_path / "whole")
    lm = Backbone.from_pretrained(tmp_path / "cut" / "final").lm
    assert (lm.get_input_embeddings().weight is lm.get_output_embeddings().weight) == tied


# ---- network --------------------------------------------------------------------------------------------------------


def test_a_connection_would_have_been_noticed(tmp_path):
    """That no stage tries one is what `whole` asserts."""
    code, said = ladi(tmp_path, ["--help"], refuse_network, connect)
    assert code == 99
    assert "network: socket.getaddrinfo" in said


def connect() -> None:
    import socket

    socket.create_connection(("localhost", 9))


def test_offline_a_model_that_is_not_here_is_named(tmp_path):
    args = [*jsonl(tmp_path / "rows.jsonl", 5), "--backbone.name-or-path", "nobody/nothing", "--out-dir", "run"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-m", "ladi.cli", *args]
    done = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ladi: cannot load the model nobody/nothing: ")
    assert line.endswith("or a model of the hub, downloaded while online")
