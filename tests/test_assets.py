"""The bundled models do what their provenance says, measured again."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ladi import quickstart
from ladi.bundled import ASSETS, bundled_models, resolve
from ladi.inference.evaluate import EvalConfig, evaluate
from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.generation import SampleConfig
from ladi.models.reasoner import LatentReasoner
from ladi.models.vae import ThoughtVAE
from ladi.rundir import checkpoint_dir
from ladi.tasks.countdown import Countdown
from ladi.train import presets
from ladi.train.vae import all_blocks, first_problems, reconstruction

TASK = Countdown(size=3, max_input=50)
LABELS = (quickstart.AR, quickstart.LADIR, quickstart.GRPO, quickstart.LADI_RL)
PROVENANCE = {
    f"assets/{path.parent.name}/{model}": entry
    for path in ASSETS.glob("*/provenance.json")
    for model, entry in json.loads(path.read_text()).items()
}
VAES = [name for name in PROVENANCE if name.endswith("/vae")]
TOKEN_LEVEL = [name for name in PROVENANCE if name.endswith(("/ar", "/grpo"))]
LADIR = [name for name in PROVENANCE if name not in VAES + TOKEN_LEVEL]


def measure(name: str, num_steps: int = 30, **fields):
    temperature = 1.0 if name in TOKEN_LEVEL else 0.0
    sample = SampleConfig(num_steps=num_steps, temperature=temperature)
    fields = {"num_questions": 60, "num_samples": 16, "ks": (1, 16)} | fields
    return evaluate(EvalConfig(model_dir=resolve(Path(name)), task=TASK, sample=sample, **fields))


@pytest.mark.parametrize("name", [*TOKEN_LEVEL, *LADIR])
def test_accuracy_is_what_the_provenance_says(name):
    record = measure(name)
    for k in ("1", "16"):
        claimed = PROVENANCE[name]["metrics"][f"pass@{k}"]
        assert record["pass@k"][k]["low"] - 0.03 <= claimed <= record["pass@k"][k]["high"] + 0.03


@pytest.mark.parametrize("name", LADIR)
def test_answers_need_the_latents(name):
    use = measure(name, num_steps=10, num_questions=200, num_samples=1, ks=(1,), latent_use_samples=4)["latent_use"]
    for altered in ("zeroed", "shuffled", "noise"):
        assert use[altered]["high"] < use["intact"]["low"]


@pytest.mark.parametrize("name", VAES)
def test_the_vae_reconstructs_as_many_held_out_blocks_as_its_provenance_says(name):
    vae = ThoughtVAE.from_pretrained(name)
    texts = all_blocks(first_problems(TASK, "validation", 300), TASK, vae.config.block)
    report = reconstruction(vae, texts, torch.Generator().manual_seed(0), (1.0,))
    claimed = PROVENANCE[name]["metrics"]
    assert report["vae/exact_mean"] == pytest.approx(claimed["vae/exact_mean"], abs=0.02)
    assert report["vae/exact_noise_1.0"] == pytest.approx(claimed["vae/exact_noise_1.0"], abs=0.06)
    assert report["vae/exact_noise_1.0"] < report["vae/exact_mean"]  # noise does destroy latents


@pytest.mark.parametrize("name", ["ar", "vae", "stage1"])
def test_a_bundled_model_is_loaded_by_its_name(name):
    kinds = {"ar": Backbone, "vae": ThoughtVAE, "stage1": LatentReasoner}
    places = (f"assets/cd3_tiny/{name}", ASSETS / "cd3_tiny" / name)
    by_name, by_folder = (kinds[name].from_pretrained(place) for place in places)
    assert all(torch.equal(a, b) for a, b in zip(by_name.parameters(), by_folder.parameters(), strict=True))
    with pytest.raises(ValueError, match="no folder assets/cd3_tiny/nothing"):
        kinds[name].from_pretrained("assets/cd3_tiny/nothing")


def test_every_bundled_model_has_its_provenance_and_all_stay_small():
    assert set(bundled_models()) == set(PROVENANCE)
    for name, entry in PROVENANCE.items():
        assert {"command", "commit", "seed", "metrics"} <= set(entry)
        assert '"/' not in json.dumps(entry), f"{name}: an absolute path of some machine"
    assert sum(p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()) < 40e6


@pytest.mark.parametrize("preset", quickstart.BUNDLED)
def test_the_quickstart_runs_from_the_bundled_models(tmp_path, preset):
    sizes = {"num_questions": 4, "num_samples": 4, "num_steps": 3}
    rl = {"updates": 2, "questions": 2, "num_latents": 3, "texts_per_latent": 2}
    report = quickstart.main(quickstart.Config(out_dir=tmp_path, preset=preset, **sizes, **rl), Console(quiet=True))
    text = report.read_text()
    for part in (*LABELS, "Reinforcement learning"):
        assert part in text
    assert (quickstart.STAGE_2 in text) == (preset == "cd3_tiny")
    for run in ("grpo", "ladi_rl"):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 2
        assert "reward/mean" in lines[0]


def small_cd3(root: Path, seed: int = 0):
    """cd3_tiny cut down to two steps a stage."""
    whole = presets.cd3_tiny(root, seed)

    def short(stage, **fields):
        data = replace(stage.data, num_train=64)
        return replace(stage, data=data, loop=replace(stage.loop, steps=2, batch_size=8, micro_batch_size=8), **fields)

    backbone = BackboneConfig(width=32, num_layers=1, num_heads=2, mlp_width=64)
    return replace(
        whole,
        sft=short(whole.sft, backbone=backbone),
        vae=short(whole.vae, statistics_problems=16, gate_problems=8),
        reasoner=short(whole.reasoner),
        rollout=short(whole.rollout),
    )


def test_the_quickstart_trains_every_stage_from_scratch_and_only_once(tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "small_cd3", small_cd3)
    sizes = {"num_questions": 2, "num_samples": 2, "num_steps": 2}
    rl = {"updates": 1, "questions": 2, "num_latents": 2, "texts_per_latent": 2}
    config = quickstart.Config(out_dir=tmp_path, preset="small_cd3", from_scratch=True, **sizes, **rl)
    trained = []

    def noted(name, main):
        return lambda config: (trained.append(name), main(config))[1]

    for name, stage in quickstart.STAGES.items():
        monkeypatch.setattr(stage, "main", noted(name, stage.main))
    for is_estimated in (True, False):
        console = Console(record=True, quiet=False, file=io.StringIO())
        report = quickstart.main(config, console)
        said = console.export_text()
        assert ("Training from scratch takes about" in said) == is_estimated
        assert "report:" in said
    assert quickstart.STAGE_2 in report.read_text()
    assert trained == ["sft", "vae", "reasoner", "rollout"]
    with pytest.raises(ValueError, match=r"other settings: .*seed \(0 before, 1 now\)"):
        quickstart.main(replace(config, seed=1), console)


def test_the_estimate_of_time_counts_blocks_copies_and_steps_that_are_left(tmp_path):
    seconds = {}
    for name in ("cd3_tiny", "cd3_one_block"):
        pipeline = presets.PRESETS[name](tmp_path)
        steps = {stage: quickstart.steps_left(getattr(pipeline, stage)) for stage in quickstart.STAGES}
        seconds[name] = quickstart.seconds_left(pipeline, steps, step_s=0.2)
    two, one = seconds.values()
    assert one["vae"] == two["vae"] / 2
    assert one["reasoner"] > two["reasoner"]  # 16 noisy copies of a problem in place of 2 x 4
    assert two["sft"] == pytest.approx(0.2 * 3000)
    assert quickstart.seconds_left(pipeline, {**steps, "sft": 0, "vae": 1}, 0.2).keys() == one.keys() - {"sft"}


@pytest.mark.parametrize("fields", [{"num_latents": 1}, {"texts_per_latent": 1}], ids=str)
def test_the_quickstart_refuses_at_once_what_reinforcement_would_refuse_at_its_end(fields):
    with pytest.raises(ValueError, match="num_latents >= 2 and texts_per_latent >= 2"):
        quickstart.Config(**fields)


def test_the_estimate_counts_only_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "time_sft_step", lambda pipeline: 60.0)  # a minute a step
    for stage in quickstart.STAGES.values():
        monkeypatch.setattr(stage, "main", lambda config: None)
    pipeline = presets.arithmetic_tiny(tmp_path)
    steps = {name: getattr(pipeline, name).loop.steps for name in quickstart.STAGES}

    def said() -> dict[str, int]:
        """The minutes of each part."""
        console = Console(record=True, width=1000, file=io.StringIO())
        quickstart.train_all(pipeline, console)
        return {name: int(minutes) for name, minutes in re.findall(r"(\w+) (\d+)[,)]", console.export_text())}

    whole = said()
    assert set(whole) == {*steps, "encoding"}
    for name in ("sft", "vae"):
        (tmp_path / name / "final").mkdir(parents=True)
        (tmp_path / name / "final" / "config.json").touch()
    pipeline.reasoner.latents_path.touch()
    checkpoint_dir(tmp_path / "reasoner", steps["reasoner"] * 3 // 4).mkdir(parents=True)
    assert said() == {"reasoner": whole["reasoner"] / 4, "rollout": whole["rollout"]}
    checkpoint_dir(tmp_path / "reasoner", steps["reasoner"]).mkdir(parents=True)
    assert said() == {"reasoner": 2, "rollout": whole["rollout"]}


def test_a_preset_without_bundled_models_is_said(tmp_path):
    config = quickstart.Config(out_dir=tmp_path, preset="jsonl_small")
    with pytest.raises(ValueError, match=r"'jsonl_small' \(there are of cd3_one_block, cd3_tiny\); add --from-scratch"):
        quickstart.main(config, Console(quiet=True))
