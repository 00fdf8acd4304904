"""The doctor's estimates against what training allocates."""

import copy
import json
import weakref
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from rich.console import Console
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ladi import cli, doctor, footprint
from ladi.bundled import ASSETS
from ladi.draws import Streams
from ladi.inference.text import alphabet, blocks_of, sft_target
from ladi.models import assistant
from ladi.models.assistant import LatentAssistant, load_main
from ladi.models.backbone import PUBLISHED, Backbone, BackboneConfig, lm_shape
from ladi.models.decoding import continue_ids
from ladi.models.reasoner import LatentReasoner
from ladi.models.vae import ThoughtVAE
from ladi.progress import short
from ladi.tasks.sandbox import Sandbox
from ladi.train import checkpoint, dlr, dlr_warmup, grpo, loop, reasoner, rl, rollout, sft
from ladi.train.checkpoint import State
from ladi.train.data import encode_blocks, tokenize_pairs
from ladi.train.optim import ALIKE, OptimConfig
from ladi.train.presets import PRESETS
from ladi.train.rewards import Rewards

MODELS = ASSETS / "cd3_tiny"
STAGES = ("sft", "vae", "reasoner", "rollout", "rl", "grpo", "dlr-warmup", "dlr")
NUM_PROBLEMS = 4


def saved_bytes(model: torch.nn.Module, run) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps the address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in kept.values())


class Peak(TorchDispatchMode):
    """The most bytes that were alive at a time of all that was allocated within."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor.untyped_storage())
        return out

    def see(self, storage):
        key, size = storage.data_ptr(), storage.nbytes()
        if size and key not in self.alive:
            self.alive[key] = weakref.finalize(storage, self.freed, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def freed(self, key, size):
        del self.alive[key]
        self.now -= size


def peak_bytes(model, run) -> int:
    """The most bytes that a loss and its backward pass held at a time, the weights' gradients left out."""
    with Peak() as memory:
        run()[0].backward()
    return memory.peak - sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def of_few_problems(pipeline, loop=None, **changes):
    """A pipeline whose batches are `NUM_PROBLEMS` problems, with other settings of all loops and of some policies."""

    def stage(name):
        config = getattr(pipeline, name)
        sizes = replace(config.loop, batch_size=NUM_PROBLEMS, micro_batch_size=NUM_PROBLEMS, **(loop or {}))
        policy = {"policy": replace(config.policy, **changes[name])} if name in changes else {}
        return replace(config, loop=sizes, **policy)

    return replace(pipeline, **{name.replace("-", "_"): stage(name.replace("-", "_")) for name in STAGES})


def of_full_length(texts, length):
    """Sampled texts, padded as if one of them had the greatest length."""
    more = (0, length - texts.ids.shape[-1])
    return replace(texts, ids=pad(texts.ids, more), valid=pad(texts.valid, more))


class Measured:
    """Each stage on a few problems: bytes of one loss, by default those that autograd keeps for the backward pass."""

    def __init__(self, pipeline, count=saved_bytes):
        self.pipeline, self.task, self.count = pipeline, pipeline.sft.data.task, count
        self.problems = [self.task.problem("train", i) for i in range(NUM_PROBLEMS)]
        self.questions = [p.question for p in self.problems]
        self.generator = torch.Generator().manual_seed(0)
        self.source = Streams.of(0, range(NUM_PROBLEMS), 0)

    def rewards(self, config):
        return Rewards(config.reward, self.task)

    def sft(self):
        backbone = Backbone.from_config(self.pipeline.sft.backbone, alphabet(self.task))
        pairs = tokenize_pairs(backbone, self.questions, [sft_target(p, self.task) for p in self.problems])
        return self.count(backbone, lambda: sft.loss(backbone, sft.Batch(*pairs), self.generator))

    def vae(self):
        vae = ThoughtVAE.from_pretrained(MODELS / "vae").train()
        tokens = vae.tokenize([b for p in self.problems for b in blocks_of(p, "step", self.task.step_separator)])
        return self.count(vae, lambda: vae.loss(tokens, self.generator))

    def supervised(self):
        model = LatentReasoner.from_pretrained(MODELS / "stage1").train()
        pairs = tokenize_pairs(model.backbone, self.questions, [p.answer for p in self.problems])
        blocks = [blocks_of(p, "step", self.task.step_separator) for p in self.problems]
        encoded = encode_blocks(model.vae, blocks, model.config.max_blocks)
        return model, reasoner.make_batch(model.vae.scale, encoded, pairs, "mean", self.generator)

    def reasoner(self):
        (model, batch), config = self.supervised(), self.pipeline.reasoner
        return self.count(model, lambda: reasoner.loss(model, batch, self.generator, config.loss))

    def rollout(self):
        (model, batch), config = self.supervised(), self.pipeline.rollout
        return self.count(model, lambda: rollout.loss(model, batch, self.generator, config.loss, config.rollout))

    def rl(self):
        model, config = LatentReasoner.from_pretrained(MODELS / "stage1").train(), self.pipeline.rl
        drawn = rl.sample_rollout(model, self.problems, self.rewards(config), config, self.source)
        texts = of_full_length(drawn.texts, model.config.max_answer_tokens)
        ones = (torch.ones_like(x) for x in (drawn.latent_advantages, drawn.text_advantages))  # or parts are left out
        drawn = replace(drawn, texts=texts, **dict(zip(("latent_advantages", "text_advantages"), ones, strict=True)))
        return self.count(model, lambda: rl.loss(model, drawn, config))

    def grpo(self):
        model, config = Backbone.from_pretrained(MODELS / "ar").train(), self.pipeline.grpo
        drawn = grpo.sample_rollout(model, self.problems, self.rewards(config), config, self.source)
        texts = of_full_length(drawn.texts, config.policy.max_completion_length)
        drawn = replace(drawn, texts=texts, advantages=torch.ones_like(drawn.advantages))
        return self.count(model, lambda: grpo.loss(model, drawn, config))

    def assistant(self):
        config = self.pipeline.dlr_warmup
        backbone = Backbone.from_config(config.backbone, alphabet(self.task))
        main = load_main(config.main, config.main_dtype)
        return LatentAssistant.from_backbones(config.assistant, backbone, main, config.main)

    def dlr_warmup(self):
        assistant = self.assistant()
        model = dlr_warmup.WarmStart(assistant, copy.deepcopy(assistant.policy.backbone))
        solutions = [sft_target(p, self.task) for p in self.problems]
        batch = dlr_warmup.Batch(self.questions, solutions, assistant.main.tokenize(solutions, add_eos=True), 1.0)
        return self.count(model, lambda: dlr_warmup.loss(model, batch, self.generator, 0.05))

    def dlr(self):
        model, config = self.assistant(), self.pipeline.dlr
        reference = copy.deepcopy(model.policy).requires_grad_(False)
        drawn = dlr.sample_rollout(model, self.problems, self.rewards(config), config, self.source)
        texts = of_full_length(drawn.texts, model.config.max_answer_tokens)
        drawn = replace(drawn, texts=texts, advantages=torch.ones_like(drawn.advantages))
        return self.count(model, lambda: dlr.loss(model, drawn, config, reference))


@pytest.fixture(scope="module")
def preset():
    pipeline = PRESETS["cd3_tiny"]()
    warmup = replace(pipeline.dlr_warmup, main="assets/cd3_tiny/ar")
    return of_few_problems(replace(pipeline, dlr_warmup=warmup))


def estimated(pipeline):
    return footprint.estimates(pipeline, footprint.lengths(pipeline))


@pytest.mark.parametrize("stage", STAGES)
def test_activations_are_what_autograd_keeps(preset, stage):
    measured = getattr(Measured(preset), stage.replace("-", "_"))()
    assert estimated(preset)[stage].activations == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("stage", "policy"),
    [
        ("rl", {}),
        ("rl", {"rollout_texts": 40}),
        ("grpo", {}),
        ("grpo", {"rollout_texts": 40}),
        ("dlr", {}),
        ("dlr", {"rollout_texts": 16}),
    ],
)
def test_a_rollout_holds_its_keys_and_values_once(preset, stage, policy, monkeypatch):
    """Those that the decoding of texts which never end holds at its peak, and those of the prefixes behind it."""
    module, measured = {"rl": rl, "grpo": grpo, "dlr": assistant}[stage], []

    def watched(backbone, prefix, *args, **kwargs):
        monkeypatch.setattr(backbone, "eos", 10**6)
        with Peak() as memory:
            out = continue_ids(backbone, prefix, *args, **kwargs)
        weights = sum(p.nbytes for p in backbone.parameters())  # which passes see too
        measured.append(memory.peak - weights + sum(k.nbytes + v.nbytes for k, v in prefix.past))
        return out

    monkeypatch.setattr(module, "continue_ids", watched)
    pipeline = of_few_problems(preset, **{stage: policy})
    draw = Measured(pipeline, count=lambda model, run: 0)
    getattr(draw, stage)()
    assert estimated(pipeline)[stage].sampling == pytest.approx(measured[0], rel=0.15)


@pytest.mark.parametrize(
    ("stage", "policy"),
    [
        ("rl", {"alpha": 1.0}),
        ("rl", {"alpha": 0.0}),
        ("rl", {"replay_steps": 3, "num_latents": 4}),
        ("rl", {"density": "flow_loss"}),
        ("dlr", {"gamma": 0.0}),
        ("dlr", {"text_weight": 1.0, "temperature": 1.0, "num_decoded": 8, "filter": "random"}),
    ],
)
def test_activations_follow_the_settings_of_a_policy(preset, stage, policy):
    pipeline = of_few_problems(preset, **{stage: policy})
    assert estimated(pipeline)[stage].activations == pytest.approx(getattr(Measured(pipeline), stage)(), rel=0.1)


@pytest.mark.parametrize("stage", STAGES)
def test_activations_in_bf16(preset, stage):
    def count(model, run):
        with torch.autocast("cpu", torch.bfloat16):
            return saved_bytes(model, run)

    pipeline = of_few_problems(preset, {"precision": "bf16"})
    measured = getattr(Measured(pipeline, count), stage.replace("-", "_"))()
    assert estimated(pipeline)[stage].activations == pytest.approx(measured, rel=0.15)


TEXTS = {"text_weight": 1.0, "temperature": 1.0, "num_decoded": 8, "filter": "random"}


@pytest.mark.parametrize(
    ("stage", "policy", "precision", "main_dtype"),
    [
        ("dlr_warmup", {}, "fp32", "bfloat16"),
        ("dlr_warmup", {}, "bf16", "bfloat16"),
        ("dlr_warmup", {}, "bf16", "float32"),
        ("dlr", {"dlr": TEXTS}, "bf16", "bfloat16"),
    ],
)
def test_activations_and_state_follow_the_dtype_of_a_frozen_main_model(preset, stage, policy, precision, main_dtype):
    def count(model, run):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return model, saved_bytes(model, run)

    pipeline = replace(preset, dlr_warmup=replace(preset.dlr_warmup, main_dtype=main_dtype))
    pipeline = of_few_problems(pipeline, {"precision": precision}, **policy)
    model, kept = getattr(Measured(pipeline, count), stage)()
    found, usual = (estimated(p)[stage.replace("_", "-")] for p in (pipeline, preset))
    assert found.activations == pytest.approx(kept, rel=0.1)
    main = (model.assistant if stage == "dlr_warmup" else model).main
    assert usual.state - found.state == pytest.approx(
        sum(4 * p.numel() - p.nbytes for p in main.parameters()), rel=1e-2
    )


@pytest.mark.parametrize(
    ("stage", "loop", "policy"),
    [
        ("grpo", {}, {}),
        ("grpo", {"gradient_checkpointing": True}, {}),
        ("grpo", {}, {"replay_texts": 16}),
        ("rl", {"gradient_checkpointing": True}, {}),
        ("rl", {}, {"replay_texts": 16, "replay_copies": 32}),
        ("rl", {"gradient_checkpointing": True}, {"replay_texts": 16, "replay_copies": 32}),
        ("dlr", {}, {"replay_trajectories": 32}),
        ("dlr", {}, {**TEXTS, "replay_trajectories": 24}),
    ],
)
def test_memory_where_passes_are_computed_again(preset, stage, loop, policy):
    def count(model, run):
        if loop:
            model.get_submodule("" if isinstance(model, Backbone) else "backbone").recompute_layers()
        return peak_bytes(model, run)

    pipeline = of_few_problems(preset, loop, **{stage: policy})
    measured = getattr(Measured(pipeline, count), stage)()
    assert estimated(pipeline)[stage].activations == pytest.approx(measured, rel=0.25)


def test_activations_of_a_llama_too(preset):
    pipeline = replace(preset, sft=replace(preset.sft, backbone=BackboneConfig(family="llama")))
    assert estimated(pipeline)["sft"].activations == pytest.approx(Measured(pipeline).sft(), rel=0.1)


def test_the_state_is_what_a_checkpoint_and_the_gradients_hold(preset):
    found = estimated(preset)
    backbone = Backbone.from_config(preset.sft.backbone, alphabet(preset.sft.data.task))
    state = State(backbone, OptimConfig(name="adamw"), ALIKE)
    gradients = sum(p.numel() * 4 for p in backbone.parameters())
    assert found["sft"].state == pytest.approx(state.num_bytes() + gradients, rel=1e-3)
    assert found["sft"].parameters == sum(p.numel() for p in backbone.parameters())


def bytes_in(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_the_disk_is_what_a_stage_leaves_there_and_has_there_at_most(preset, tmp_path, monkeypatch):
    sizes = loop.LoopConfig(steps=4, batch_size=4, micro_batch_size=4, checkpoint_every=1)
    config = replace(preset.sft, out_dir=tmp_path, loop=sizes)
    peaks, prune = [], checkpoint.prune_checkpoints
    monkeypatch.setattr(checkpoint, "prune_checkpoints", lambda *args: (peaks.append(bytes_in(tmp_path)), prune(*args)))
    sft.main(config)
    found = estimated(replace(preset, sft=config))["sft"]
    assert found.disk == pytest.approx(bytes_in(tmp_path), rel=0.02)
    assert found.disk_peak == pytest.approx(max(peaks), rel=0.02)


def test_models_are_left_as_large_as_the_bundled_ones(preset):
    found, p = estimated(preset), preset.reasoner
    latents = 4 * p.data.num_train * p.max_blocks * preset.vae.vae.num_latents * preset.vae.vae.latent_width
    bundled = {"sft": ("ar",), "vae": ("vae",), "reasoner": ("stage1", "vae")}
    bundled |= {"rl": bundled["reasoner"], "grpo": bundled["sft"]}  # as large as what they start from
    for stage, folders in bundled.items():
        e = found[stage]
        checkpoint = e.state - 4 * e.parameters  # as large as gradients, moments and average
        model = e.disk - checkpoint - latents * (stage == "reasoner")
        assert model == pytest.approx(sum(bytes_in(MODELS / folder) for folder in folders), rel=0.03), stage


def test_cached_latents_are_those_of_the_problems_that_there_are(tmp_path):
    """Named by number, or all of them."""
    config, file = doctor.configuration("jsonl_small"), tmp_path / "rows.jsonl"
    rows = (f'{{"question": "2+{i}", "steps": ["2+{i}={2 + i}"], "answer": "{2 + i}"}}\n' for i in range(60))
    file.write_text("".join(rows))
    task, disk = replace(config.data.task, path=file), {}
    for count in (4, 0):
        data = replace(config.data, task=task, num_train=count)
        disk[count] = doctor.main(replace(config, data=data), Console(quiet=True))["reasoner"].disk
    preset = PRESETS["jsonl_small"]()
    numbers = preset.reasoner.max_blocks * preset.vae.vae.num_latents * preset.vae.vae.latent_width
    available = task.num_problems("train")
    assert available > 40
    assert disk[0] - disk[4] == 2 * 2 * (available - 4) * numbers  # mean and variance in fp16


def test_the_disk_that_all_stages_need_is_said_and_whether_it_is_there():
    def estimate(disk, peak):
        return footprint.Estimate(0, 0, 0, None, None, None, disk * 2**30, peak * 2**30)

    found = {"a": estimate(2, 9), "b": estimate(3, 6), "c": estimate(4, 5)}
    for free, enough in ((11, True), (9.9, False)):  # when c trains: 2 + 3 + 5
        said = doctor.disk_line(found, int(free * 2**30))
        assert "all together 9.00 GiB" in said
        assert "a has the most, 9.00 GiB" in said
        assert ("Too little" not in said) == enough


SIZES = {
    "meta-llama/Llama-3.1-8B": 8.03,
    "meta-llama/Llama-2-7b-hf": 6.74,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-0.6B": 0.596,
}
"""Billions of parameters, as their publishers give them."""


@pytest.mark.parametrize("name", SIZES)
def test_published_models_have_their_published_size(name):
    assert name in PUBLISHED
    assert lm_shape(BackboneConfig(name_or_path=name), 0).num_parameters / 1e9 == pytest.approx(SIZES[name], abs=0.005)


def test_a_model_in_a_folder_is_read_and_an_unknown_one_refused(tmp_path):
    backbone = Backbone.from_config(BackboneConfig(width=32, num_layers=2, num_heads=2, mlp_width=64), "abc")
    backbone.save_pretrained(tmp_path)
    shape = lm_shape(BackboneConfig(name_or_path=str(tmp_path)), 0)
    assert shape.num_parameters == sum(p.numel() for p in backbone.parameters())
    assert (shape.num_layers, shape.width, shape.mlp_width) == (2, 32, 64)
    with pytest.raises(ValueError, match="no configuration of 'nobody/nothing'"):
        lm_shape(BackboneConfig(name_or_path="nobody/nothing"), 0)


def test_the_command_prints_what_is_here_and_what_is_needed():
    console = Console(record=True, width=120)
    found = doctor.main(doctor.configuration("cd4_small"), console)
    said = console.export_text()
    assert "transformers" in said
    assert tuple(found) == STAGES
    assert short(found["sft"].parameters) in said
    with pytest.raises(ValueError, match="unknown preset"):
        doctor.configuration("nothing")


def test_without_the_data_sizes_are_estimated_and_a_local_copy_gives_the_rest(tmp_path):
    console = Console(record=True, width=120)
    config = doctor.configuration("jsonl_small")
    without = doctor.main(config, console)
    assert "the data cannot be read" in console.export_text()
    assert all(e.activations is None and e.tokens_per_update is None for e in without.values())
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "2+3", "steps": ["2+3=5"], "answer": "5"}\n' * 8)
    here = replace(config, data=replace(config.data, task=replace(config.data.task, path=file), num_train=4))
    found = doctor.main(here, console)
    assert all(found[stage].activations > 0 for stage in STAGES)
    assert found["sft"].parameters == pytest.approx(without["sft"].parameters, rel=0.05)


def test_a_pretrained_backbone_of_the_command_line_is_counted_in_every_stage_that_goes_on_from_it(tmp_path):
    sizes = BackboneConfig(family="llama", width=48, num_layers=3, num_heads=2, mlp_width=64)
    backbone = Backbone.from_config(sizes, "abcdefgh")
    backbone.save_pretrained(tmp_path)
    args = ["--backbone.name-or-path", str(tmp_path)]
    config = cli.configured(doctor.configuration("jsonl_small"), args, "ladi doctor")
    found = doctor.main(config, Console(quiet=True))
    p = sum(p.numel() for p in backbone.parameters())
    assert [found[stage].trainable for stage in ("sft", "reasoner", "rollout", "rl", "grpo")] == [p] * 5
    assert found["dlr-warmup"].parameters == p + found["dlr-warmup"].trainable  # the main model, frozen


def named(name: str) -> str:
    """What the doctor says of a main model of this name."""
    pipeline = PRESETS["dlr_cd3"]()
    return dict(doctor.needs(replace(pipeline, dlr_warmup=replace(pipeline.dlr_warmup, main=name))))[name]


def test_a_model_is_here_with_all_its_weights_only(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert named("assets/cd3_tiny/ar") == "here"
    assert named("assets/cd3_tiny/none").startswith("not here")
    assert named("some/model").startswith("not here")
    cached = tmp_path / "hub" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    parts = ["model-1.safetensors", "model-2.safetensors"]
    index = json.dumps({"weight_map": {"a": parts[0], "b": parts[1], "c": parts[0]}})
    for folder, name in (
        (cached / "snapshots" / ("0" * 40), "some/model"),
        (tmp_path / "mine", str(tmp_path / "mine")),
    ):
        folder.mkdir(parents=True)
        for file, text in (("config.json", "{}"), ("model.safetensors.index.json", index), (parts[0], "")):
            (folder / file).write_text(text)
            assert named(name).startswith("not here"), file
        (folder / parts[1]).write_text("")
        assert named(name) == "here"
        for file in (*parts, "model.safetensors.index.json"):
            (folder / file).unlink()
        (folder / "model.safetensors").write_text("")
        assert named(name) == "here"


@pytest.mark.parametrize(
    ("tier", "said"), [("namespaces", "of their own"), ("rlimits", "--data.task.allow-unsafe-exec")]
)
def test_how_generated_programs_are_shut_in_is_said_where_the_task_runs_them(monkeypatch, tier, said):
    monkeypatch.setattr(doctor, "shared_sandbox", lambda: Sandbox(tier))
    rows = dict(doctor.needs(PRESETS["ladi_rl_code_qwen3_8b"]()))
    assert said in rows["generated programs"]
    assert "generated programs" not in dict(doctor.needs(PRESETS["cd3_tiny"]()))
