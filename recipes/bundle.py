"""Copy trained models into src/ladi/assets/ with the provenance and the measured numbers of each.

    python recipes/bundle.py cd3_tiny ar=runs/cd3_tiny/sft stage1=runs/cd3_tiny/reasoner

Each argument names a finished run; its metrics are measured here, on 200 test puzzles with 16 samples each.
"""

import json
import shutil
import sys
from pathlib import Path

from ladi.inference.evaluate import EvalConfig, evaluate
from ladi.inference.models import load_model
from ladi.models.generation import SampleConfig
from ladi.models.reasoner import LatentReasoner
from ladi.rundir import write_json_atomic
from ladi.train.presets import PRESETS

ASSETS = Path(__file__).parents[1] / "src" / "ladi" / "assets"


def bundle(preset: str, name: str, run_dir: Path) -> None:
    """Copy `run_dir/final` and add its entry to provenance.json."""
    target = ASSETS / preset / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run_dir / "final", target, ignore=shutil.ignore_patterns("vae"))
    path = ASSETS / preset / "provenance.json"
    entries = json.loads(path.read_text()) if path.is_file() else {}
    known = run_dir / "provenance.json"
    run = json.loads(known.read_text()) if known.is_file() else {"command": "", "commit": ""}
    settings = json.loads((run_dir / "config.json").read_text()) if (run_dir / "config.json").is_file() else {}
    entry = {**run, "seed": settings.get("loop", {}).get("seed", 0), "config": settings}
    if name == "vae":
        entry["metrics"] = json.loads((run_dir / "reconstruction.json").read_text())
    else:
        is_latent = isinstance(load_model(target), LatentReasoner)
        sample = SampleConfig(num_steps=30, temperature=0.0 if is_latent else 1.0)
        task = PRESETS[preset]().eval.task
        record = evaluate(
            EvalConfig(model_dir=target, task=task, num_questions=200, num_samples=16, ks=(1, 16), sample=sample)
        )
        entry["metrics"] = {f"pass@{k}": value["value"] for k, value in record["pass@k"].items()}
        entry["metrics"]["distinct_valid_of_16"] = record["distinct_valid"]["value"]
    entries[name] = entry
    write_json_atomic(path, entries)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        bundle(sys.argv[1], *(argument.split("=")[0], Path(argument.split("=")[1])))
