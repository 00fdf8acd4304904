"""The bundled models do what their provenance says, measured again."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ladi import quickstart
from ladi.bundled import ASSETS, bundled_models, resolve
from ladi.inference.evaluate import EvalConfig, evaluate
from ladi.models.generation import SampleConfig
from ladi.models.vae import ThoughtVAE
from ladi.tasks.countdown import Countdown
from ladi.train.vae import first_blocks, reconstruction

FOLDER = ASSETS / "cd3_tiny"
TASK = Countdown(size=3, max_input=50)
PROVENANCE = json.loads((FOLDER / "provenance.json").read_text())
TOKEN_LEVEL = ["ar", "grpo", "grpo_long"]
LADIR = [name for name in PROVENANCE if name not in ("vae", *TOKEN_LEVEL)]


def measure(name: str, **fields):
    temperature = 1.0 if name in TOKEN_LEVEL else 0.0
    sample = SampleConfig(num_steps=30, temperature=temperature)
    fields = {"num_questions": 60, "num_samples": 16, "ks": (1, 16)} | fields
    return evaluate(EvalConfig(model_dir=FOLDER / name, task=TASK, sample=sample, **fields))


@pytest.mark.parametrize("name", [*TOKEN_LEVEL, *LADIR])
def test_accuracy_is_what_the_provenance_says(name):
    record = measure(name)
    for k in ("1", "16"):
        claimed = PROVENANCE[name]["metrics"][f"pass@{k}"]
        assert record["pass@k"][k]["low"] - 0.03 <= claimed <= record["pass@k"][k]["high"] + 0.03


@pytest.mark.parametrize("name", LADIR)
def test_answers_need_the_latents(name):
    use = measure(name, num_questions=200, num_samples=1, ks=(1,), latent_use_samples=4)["latent_use"]
    for altered in ("zeroed", "shuffled", "noise"):
        assert use[altered]["high"] < use["intact"]["low"]


def test_the_vae_reconstructs_as_many_held_out_blocks_as_its_provenance_says():
    vae = ThoughtVAE.from_pretrained(FOLDER / "vae")
    texts = first_blocks(TASK, "validation", 300, vae.config.block)
    report = reconstruction(vae, texts, torch.Generator().manual_seed(0), (1.0,))
    claimed = PROVENANCE["vae"]["metrics"]
    assert report["vae/exact_mean"] == pytest.approx(claimed["vae/exact_mean"], abs=0.02)
    assert report["vae/exact_noise_1.0"] == pytest.approx(claimed["vae/exact_noise_1.0"], abs=0.06)
    assert report["vae/exact_noise_1.0"] < report["vae/exact_mean"]  # noise does destroy latents


def test_every_bundled_model_has_its_provenance_and_all_stay_small():
    for name in bundled_models():
        entry = json.loads((resolve(Path(name)).parent / "provenance.json").read_text())[name.rsplit("/", 1)[1]]
        assert {"command", "commit", "seed", "metrics"} <= set(entry)
        assert '"/' not in json.dumps(entry), f"{name}: an absolute path of some machine"
    assert sum(p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()) < 40e6


def test_the_quickstart_runs_from_the_bundled_models(tmp_path):
    sizes = {"num_questions": 4, "num_samples": 4, "num_steps": 3}
    rl = {"updates": 2, "questions": 2, "num_latents": 3, "texts_per_latent": 2}
    report = quickstart.main(quickstart.Config(out_dir=tmp_path, **sizes, **rl), Console(quiet=True))
    text = report.read_text()
    for part in (quickstart.AR, quickstart.LADIR, quickstart.GRPO, quickstart.LADI_RL, "Reinforcement learning"):
        assert part in text
    for run in ("grpo", "ladi_rl"):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 2
        assert "reward/mean" in lines[0]


def test_a_preset_without_bundled_models_is_said(tmp_path):
    config = quickstart.Config(out_dir=tmp_path, preset="jsonl_small")
    with pytest.raises(ValueError, match="add --from-scratch"):
        quickstart.main(config, Console(quiet=True))
