import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import ladi.rundir as rundir
from ladi.tasks.sandbox import Limits
from ladi.train import presets
from ladi.train.data import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.1
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True, kw_only=True)
class Loop:
    log_every: int = 20
    micro_batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class Config:
    out_dir: Path
    inner: Inner = field(default_factory=Inner)
    loop: Loop = field(default_factory=Loop)
    steps: int = 1


def test_the_same_configuration_enters_its_folder_again(tmp_path):
    for _ in range(2):
        rundir.open_run(tmp_path / "run", Config(out_dir=tmp_path / "run"))
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.parametrize("made", ["checkpoints/step-00000002", "final"])
def test_another_configuration_is_refused_by_field_and_value_once_something_was_trained(tmp_path, made):
    rundir.open_run(tmp_path, Config(out_dir=tmp_path, steps=5))
    rundir.open_run(tmp_path, Config(out_dir=tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 1
    (tmp_path / made).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"inner\.lr \(0\.1 before, 0\.2 now\); steps \(1 before, 2 now\)"):
        rundir.open_run(tmp_path, Config(out_dir=tmp_path, inner=Inner(lr=0.2), steps=2))


def test_settings_that_weights_do_not_depend_on_may_change_between_two_parts_of_a_run(tmp_path):
    rundir.open_run(tmp_path, Config(out_dir=tmp_path))
    rundir.checkpoint_dir(tmp_path, 2).mkdir(parents=True)
    rundir.open_run(tmp_path, Config(out_dir=tmp_path, loop=Loop(log_every=1)))
    assert json.loads((tmp_path / "config.json").read_text())["loop"]["log_every"] == 1
    with pytest.raises(ValueError, match=r"other settings: loop\.micro_batch_size \(8 before, 4 now\)\. Choose"):
        rundir.open_run(tmp_path, Config(out_dir=tmp_path, loop=Loop(log_every=2, micro_batch_size=4)))
    assert json.loads((tmp_path / "config.json").read_text())["loop"]["log_every"] == 1


def test_a_run_goes_on_with_another_validation_and_one_begun_without_with_any(tmp_path):
    config = presets.cd3_tiny(tmp_path).sft
    rundir.open_run(config.out_dir, config)
    rundir.checkpoint_dir(config.out_dir, 2).mkdir(parents=True)
    path = config.out_dir / "config.json"
    rundir.open_run(config.out_dir, replace(config, validation=ValidationConfig(every=5)))
    assert json.loads(path.read_text())["validation"]["every"] == 5
    older = json.loads(path.read_text())
    del older["validation"]
    path.write_text(json.dumps(older))
    rundir.open_run(config.out_dir, config)
    assert json.loads(path.read_text())["validation"]["every"] == 0


def test_a_setting_that_came_after_a_run_has_its_default_there(tmp_path):
    rundir.open_run(tmp_path, Config(out_dir=tmp_path))
    (tmp_path / "final").mkdir()
    older = json.loads((tmp_path / "config.json").read_text())
    del older["steps"], older["loop"], older["inner"]["names"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    rundir.open_run(tmp_path, Config(out_dir=tmp_path))
    with pytest.raises(ValueError, match=r"inner\.names \(\['a'\] before, \['b'\] now\); steps \(1 before, 2 now"):
        rundir.open_run(tmp_path, Config(out_dir=tmp_path, inner=Inner(names=("b",)), steps=2))


def leaves(value: Any, name: str = "") -> set[str]:
    """Names of all fields below nested dicts."""
    if not isinstance(value, dict):
        return {name}
    return set().union(*(leaves(entry, f"{name}.{key}" if name else key) for key, entry in value.items()))


def test_settings_that_may_change_are_settings_of_stages():
    stages = vars(presets.ladi_rl_code_qwen3_8b()).values()
    names = set().union(*(leaves(asdict(stage)) for stage in stages))
    assert [free for free in rundir.FREE_FIELDS if not any(f"{name}.".startswith(f"{free}.") for name in names)] == []


def test_how_programs_are_judged_may_change_within_a_run(tmp_path):
    config = presets.ladi_rl_code_qwen3_8b(tmp_path).rl
    (rundir.open_run(tmp_path / "rl", config) / "final").mkdir()
    task = replace(config.data.task, num_workers=1, limits=Limits(wall_s=30.0), allow_unsafe_exec=True)
    rundir.open_run(tmp_path / "rl", replace(config, data=replace(config.data, task=task)))
    with pytest.raises(ValueError, match=r"data\.task\.benchmark \(mbpp before, humaneval now\)"):
        rundir.open_run(
            tmp_path / "rl", replace(config, data=replace(config.data, task=replace(task, benchmark="humaneval")))
        )


def test_the_provenance_tells_what_made_the_weights_and_every_later_part(tmp_path, monkeypatch):
    def entered(commit: str) -> dict[str, Any]:
        monkeypatch.setattr(rundir, "provenance", lambda: {"commit": commit})
        rundir.open_run(tmp_path, Config(out_dir=tmp_path))
        return json.loads((tmp_path / "provenance.json").read_text())

    entered("before anything was trained")
    assert entered("a") == {"commit": "a", "inputs": {}}
    rundir.checkpoint_dir(tmp_path, 2).mkdir(parents=True)
    entered("b")
    whole = {"commit": "a", "inputs": {}, "resumed": [{"commit": "b"}, {"commit": "c"}]}
    assert entered("c") == whole
    (tmp_path / "final").mkdir()
    assert entered("d") == whole
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 1


def test_a_run_whose_inputs_have_changed_is_refused_and_one_from_before_they_were_noted_is_not(tmp_path):
    config = Config(out_dir=tmp_path / "run")
    (rundir.open_run(config.out_dir, config) / "final").mkdir()
    for inputs in ({"data": "a"}, {"data": "a", "main": "b"}):
        rundir.open_run(config.out_dir, config, inputs)
    with pytest.raises(ValueError, match="began from something else: what main names has changed since"):
        rundir.open_run(config.out_dir, config, {"data": "a", "main": "c"})
    assert json.loads((config.out_dir / "provenance.json").read_text())["inputs"] == {"data": "a", "main": "b"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file .*; .* choose another folder"):
        rundir.open_run(tmp_path / "file", Config(out_dir=tmp_path))


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "final"
    with rundir.atomic_dir(final) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(OSError, match=f"cannot write {final} .*Not a directory"), rundir.atomic_dir(final) as folder:
        (folder / "a" / "b").write_text((folder / "a").write_text("2") and "fails: a is a file")
    assert (final / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


class Killed(BaseException):
    """In place of kill -9."""


def write(final: Path, text: str, monkeypatch, killed_at: int = 0) -> int:
    """Replace a folder of two files; as a process would that dies before its `killed_at`-th rename or removal, and so
    does nothing after it either. Returns how many there were."""
    count = 0

    def counted(call):
        def counted_call(*args, **kwargs):
            nonlocal count
            count += 1
            if killed_at and count >= killed_at:
                raise Killed
            return call(*args, **kwargs)

        return counted_call

    with monkeypatch.context() as patch, suppress(Killed):
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        with rundir.atomic_dir(final) as folder:
            for name in ("a", "b"):
                (folder / name).write_text(text)
    return count


def test_a_folder_that_is_replaced_is_there_whole_wherever_the_process_is_killed(tmp_path, monkeypatch):
    def texts(final: Path) -> list[str]:
        return [path.read_text() for path in sorted(final.iterdir())]

    write(tmp_path / "final", "old", monkeypatch)
    number = write(tmp_path / "final", "new", monkeypatch)
    assert number >= 3 + 3  # three renames; two files and a folder removed
    for killed_at in range(1, number + 1):
        final = tmp_path / str(killed_at) / "final"
        final.parent.mkdir()
        write(final, "old", monkeypatch)
        write(final, "new", monkeypatch, killed_at)
        aside = final.with_name(".old-final")
        assert texts(final if final.exists() else aside) in (["old"] * 2, ["new"] * 2)
        assert not aside.exists() or texts(aside) == ["old"] * 2
        with pytest.raises(ZeroDivisionError), rundir.atomic_dir(final):
            _ = 1 / 0
        assert texts(final) in (["old"] * 2, ["new"] * 2)
        assert list(final.parent.iterdir()) == [final]


def test_half_written_checkpoints_are_not_seen(tmp_path):
    rundir.checkpoint_dir(tmp_path, 2).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".tmp-step-00000004").mkdir()
    assert rundir.latest_checkpoint(tmp_path) == rundir.checkpoint_dir(tmp_path, 2)
    assert rundir.latest_checkpoint(tmp_path / "elsewhere") is None


def test_metrics_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path):
    for step in (1, 2, 3):
        rundir.append_metrics(tmp_path, step, {"loss/total": float("nan") if step == 1 else 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss/to')
    rundir.truncate_metrics(tmp_path, 2)
    rundir.append_metrics(tmp_path, 3, {"loss/total": 0.25})
    assert [(m["step"], m["loss/total"]) for m in rundir.read_metrics(tmp_path)] == [(1, None), (2, 0.5), (3, 0.25)]


def test_provenance_says_what_a_number_must_stand_beside():
    assert {"command", "commit", "machine", "torch"} <= set(rundir.provenance())


def test_a_recorded_command_can_be_repeated(monkeypatch):
    args = ["eval", "--label", "AR SFT, T = 0.7", "--json", "it's.json", "--data.task.settings", '{"max_animals": 5}']
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ladi", *args])
    line = rundir.provenance()["command"].replace("ladi", "printf '%s\\n'", 1)
    shown = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == args


def test_the_fingerprint_follows_the_weights(tmp_path):
    import torch

    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    before = rundir.folder_fingerprint(tmp_path)
    assert before == rundir.folder_fingerprint(tmp_path)
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert before != rundir.folder_fingerprint(tmp_path)
