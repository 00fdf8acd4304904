"""A run's folder: config.json, provenance.json, metrics.jsonl, checkpoints; written whole or not at all.

Everything here is plain files: JSON and safetensors, never pickle. What replaces something is written beside it,
flushed to disk, and renamed over it.
"""

import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError


def to_json(value: Any) -> Any:
    """Plain JSON values from config fields: paths become text, tuples lists, dataclasses dicts."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return str(value) if isinstance(value, Path) else value


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says which file or folder could not be written, and how to go on.

    Raises:
        OSError: in place of what the block raises for want of space or rights (a library's need not name the file).
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write {path} ({error}); what was written before is untouched: free some space and run the same "
            "command to go on, or choose another folder"
        ) from error


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON so that the file is the old one or the new one, never half of one; makes its folder if need be."""
    path = Path(path)
    partial = path.with_name(f".tmp-{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            json.dump(to_json(value), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)


@contextmanager
def atomic_dir(final: Path) -> Iterator[Path]:
    """A temporary sibling folder that becomes `final` when the block ends, and vanishes if it raises.

    What `final` was before is moved aside, whole, until then; if the process is killed in between, the next write puts
    it back first.
    """
    partial, old = final.with_name(f".tmp-{final.name}"), final.with_name(f".old-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    if old.exists():
        old.rename(partial if final.exists() else final)
        shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(final):
            partial.mkdir(parents=True)
            yield partial
            for path in partial.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            if final.exists():
                final.rename(old)
            partial.rename(final)
            if old.exists():
                old.rename(partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


FREE_FIELDS = (
    "loop.log_every",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "loop.trackers",
    "loop.gradient_checkpointing",
    "policy.rollout_texts",
    "policy.replay_copies",
    "policy.replay_texts",
    "policy.replay_trajectories",
    "reward.time_limit",
    "data.num_workers",
    "data.task.limits",
    "data.task.num_workers",
    "data.task.allow_unsafe_exec",
    "gate_problems",
    "validation",
)
"""Settings that may change between two parts of a run, because its weights do not depend on them: what is written and
measured, how long is waited, and (up to the rounding of sums) what is computed at once or a second time to save memory.
`loop.micro_batch_size` is none of them, for each micro-batch has its own random numbers."""


def is_free(name: str) -> bool:
    """Whether a setting, or a group that it belongs to, is among `FREE_FIELDS`."""
    return any(name == free or name.startswith(f"{free}.") for free in FREE_FIELDS)


def differences(old: Any, new: Any, name: str = "") -> dict[str, str]:
    """The fields in which two JSON values differ, by name, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for key in sorted(old.keys() | new.keys()):
            found |= differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return found
    return {} if old == new else {name: f"{old} before, {new} now"}


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def settings_of(config: Any) -> Any:
    """What `config.json` holds of a stage's settings."""
    wanted = to_json(config)
    wanted.pop("out_dir", None)
    return wanted


def completed(stored: Any, config: Any) -> Any:
    """The stored settings of a run, with the default of each setting that did not exist yet.

    A new setting's default is what was done before there was one, whatever presets set it to.
    """
    if not (isinstance(stored, dict) and is_dataclass(config)):
        return stored
    known = dict(stored)
    for f in fields(config):
        if f.name in known:
            known[f.name] = completed(known[f.name], getattr(config, f.name))
        elif f.default is not MISSING:
            known[f.name] = to_json(f.default)
        elif f.default_factory is not MISSING:
            known[f.name] = to_json(f.default_factory())
    return known


def is_finished(out_dir: Path) -> bool:
    """Whether the run in this folder has saved its model."""
    return (out_dir / "final").exists()


def has_begun(out_dir: Path) -> bool:
    """Whether there are weights of the run in this folder."""
    return is_finished(out_dir) or latest_checkpoint(out_dir) is not None


def check_settings(out_dir: Path, config: Any, inputs: Mapping[str, str]) -> None:
    """Raise if the folder holds a run with other settings: once there is a checkpoint or a model, only `FREE_FIELDS`
    may differ, and what it read must be what it was.

    Raises:
        ValueError: with the fields and both their values, or the settings whose files have changed.
    """
    path = out_dir / "config.json"
    if not path.is_file() or not has_begun(out_dir):
        return
    provenance_path = out_dir / "provenance.json"
    before = json.loads(provenance_path.read_text()).get("inputs", {}) if provenance_path.is_file() else {}
    stale = [name for name in inputs if before.get(name, inputs[name]) != inputs[name]]
    if stale:
        raise ValueError(
            f"{out_dir} holds a run that began from something else: what {' and '.join(stale)} names has changed "
            "since. Choose another out_dir, or delete the folder to start over"
        )
    changed = differences(completed(json.loads(path.read_text()), config), settings_of(config))
    fixed = [f"{name} ({values})" for name, values in changed.items() if not is_free(name)]
    if fixed:
        raise ValueError(
            f"{out_dir} holds a run with other settings: {'; '.join(fixed)}. "
            "Choose another out_dir, or delete the folder to start over"
        )


def open_run(out_dir: Path, config: Any, inputs: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Make the run's folder, or enter an interrupted run's; write `config.json` and `provenance.json`, the latter with
    `inputs`, hashes of what the run reads, and with an entry in `resumed` for every later part of the run.

    A finished run's stay as they are: they tell what made its weights. Of several processes (torchrun, accelerate
    launch) the first does it for all.

    Raises:
        ValueError: if the folder belongs to a run with another configuration.
        OSError: if the folder cannot be written.
    """
    out_dir = Path(out_dir)
    if not is_first_process():
        return out_dir
    with writing(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    check_settings(out_dir, config, inputs)
    path, now = out_dir / "provenance.json", provenance()
    record: dict[str, Any] = now | {"inputs": {}}
    if has_begun(out_dir) and path.is_file():
        record = json.loads(path.read_text())
        if not is_finished(out_dir):
            record["resumed"] = [*record.get("resumed", []), now]
    write_json_atomic(path, record | {"inputs": record.get("inputs", {}) | dict(inputs)})
    if not is_finished(out_dir):
        write_json_atomic(out_dir / "config.json", settings_of(config))
    return out_dir


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def machine_name() -> str:
    """Processor, cores, and the GPUs that torch, where it is loaded, sees."""
    torch = sys.modules.get("torch")
    count = torch.cuda.device_count() if torch is not None else 0
    gpus = f", {count} x {torch.cuda.get_device_name(0)}" if torch is not None and count else ""
    return f"{cpu_name()}, {os.cpu_count()} cores{gpus}"


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance() -> dict[str, str]:
    """What a number must stand beside: command, commit, machine, versions, time."""
    commit = _output("git", "rev-parse", "--short", "HEAD") if shutil.which("git") else ""
    if commit and _output("git", "status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    return {
        "command": shlex.join(["ladi", *sys.argv[1:]]),
        "commit": commit or "unknown",
        "machine": machine_name(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def check_disk_space(path: Path, needed_bytes: int) -> None:
    """Raise unless the disk of `path` has room.

    Raises:
        OSError: with the free and the needed megabytes.
    """
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise OSError(
            f"{path} has {free / 1e6:.0f} MB free, the run's checkpoints need {needed_bytes / 1e6:.0f} MB; "
            "free some space, keep fewer checkpoints, or choose another out_dir"
        )


# ---- metrics.jsonl -------------------------------------------------------------------------------------------


def append_metrics(run_dir: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Add one line; a value that is not finite becomes null."""
    values = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    path = run_dir / "metrics.jsonl"
    with writing(path), path.open("a") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line torn by a crash is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def truncate_metrics(run_dir: Path, step: int) -> None:
    """Drop lines after `step`: a resumed run writes them again."""
    kept = [line for line in read_metrics(run_dir) if line["step"] <= step]
    path, partial = run_dir / "metrics.jsonl", run_dir / ".tmp-metrics.jsonl"
    with writing(path):
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.rename(path)


# ---- checkpoints ---------------------------------------------------------------------------------------------


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is kept."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint, if there is one."""
    return next(reversed(checkpoints(run_dir)), None)


def seal_checkpoint(folder: Path, step: int) -> None:
    """Write the state.json of a checkpoint whose tensors are written: its step and their fingerprint."""
    (folder / "state.json").write_text(json.dumps({"step": step, "sha256": folder_fingerprint(folder)}, indent=2))


def sealed_step(folder: Path) -> int:
    """The step of a checkpoint whose files are those that were written.

    Raises:
        ValueError: if they are not.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # what a damaged state.json leads to
        state = json.loads((folder / "state.json").read_text())
        is_whole = state.get("sha256") in (None, folder_fingerprint(folder))  # None: written without one
        if is_whole and folder.name == f"step-{state['step']:08d}":
            return state["step"]
    before = [path.name for path in checkpoints(folder.parents[1]) if path.name < folder.name]
    then = f"goes on from {before[-1]}" if before else "starts over"
    raise ValueError(f"checkpoint {folder} is damaged; delete it, and the same command {then}")


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(path)


def json_fingerprint(value: Any) -> str:
    """sha256 over a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of a saved model's config.json and safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(folder).rglob("*") if p.suffix == ".safetensors" or p.name == "config.json"):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()
