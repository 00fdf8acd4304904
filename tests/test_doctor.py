"""The doctor's estimates against what training allocates."""

import pytest
import torch
from rich.console import Console

from ladi import doctor
from ladi.inference.text import alphabet, sft_target
from ladi.models.backbone import PUBLISHED, Backbone, BackboneConfig, lm_shape
from ladi.models.reasoner import LatentReasoner, ReasonerConfig
from ladi.tasks.sandbox import Sandbox
from ladi.train import loop, reasoner, sft
from ladi.train.data import tokenize_pairs
from ladi.train.presets import PRESETS


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


@pytest.fixture(scope="module")
def preset():
    pipeline = PRESETS["cd3_tiny"]()
    return pipeline, doctor.estimates(pipeline, doctor.lengths(pipeline))


def problems(pipeline):
    data, size = pipeline.sft.data, pipeline.sft.loop.batch_size
    return data.problems(0, size, 0, size)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_activations_of_sft_are_what_autograd_keeps(family):
    pipeline = PRESETS["cd3_tiny"]()
    backbone = Backbone.from_config(BackboneConfig(family=family), alphabet(pipeline.sft.data.task))
    pairs = [(p.question, sft_target(p, pipeline.sft.data.task)) for p in problems(pipeline)]
    batch = tokenize_pairs(backbone, *map(list, zip(*pairs, strict=True)))
    kept = saved_bytes(backbone, lambda: sft.loss(backbone, batch, torch.Generator()))
    shape = lm_shape(BackboneConfig(family=family), len(backbone.tokenizer))
    size = doctor.lengths(pipeline)
    tokens = size.question + size.target
    estimate = doctor.saved_floats(shape, tokens, tokens) + size.target * (2 * shape.vocab_size + shape.width)
    assert 4 * len(pairs) * estimate == pytest.approx(kept, rel=0.15)


def test_activations_of_the_reasoner_are_what_autograd_keeps(preset):
    pipeline, found = preset
    backbone = Backbone.from_config(pipeline.sft.backbone, alphabet(pipeline.sft.data.task))
    shape = ReasonerConfig(num_latents=2, latent_width=16, max_blocks=2)
    model = LatentReasoner.from_backbone(shape, backbone, None)
    rows = problems(pipeline)
    pairs = tokenize_pairs(backbone, [p.question for p in rows], [p.answer for p in rows])
    latents = torch.randn(len(rows), 2, 2, 16)
    batch = reasoner.Batch(*pairs, latents, latents, torch.ones(len(rows), 2, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    kept = saved_bytes(model, lambda: reasoner.loss(model, batch, generator, pipeline.reasoner.loss))
    assert found["reasoner"].activations == pytest.approx(kept, rel=0.15)


def test_the_state_is_what_a_checkpoint_and_the_gradients_hold(preset):
    pipeline, found = preset
    backbone = Backbone.from_config(pipeline.sft.backbone, alphabet(pipeline.sft.data.task))
    state = loop.State(backbone, loop.OptimConfig(name="adamw"), loop.ALIKE)
    gradients = sum(p.numel() * 4 for p in backbone.parameters())
    assert found["sft"].state == pytest.approx(state.num_bytes() + gradients, rel=1e-3)
    assert found["sft"].parameters == sum(p.numel() for p in backbone.parameters())


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
    found = doctor.main(doctor.Config(preset="cd4_small"), console)
    said = console.export_text()
    assert "transformers" in said
    assert set(found) == {"sft", "vae", "reasoner", "rl", "grpo", "dlr"}
    assert f"{found['sft'].parameters / 1e6:,.2f}" in said
    with pytest.raises(ValueError, match="unknown preset"):
        doctor.main(doctor.Config(preset="nothing"), console)


def test_data_that_is_not_here_is_said_and_nothing_is_estimated():
    console = Console(record=True, width=120)
    assert doctor.main(doctor.Config(preset="jsonl_small"), console) == {}
    assert "the data cannot be read" in console.export_text()


@pytest.mark.parametrize(("tier", "said"), [("namespaces", "of their own"), ("rlimits", "--allow-unsafe-exec")])
def test_how_generated_programs_are_shut_in_is_said_where_the_task_runs_them(monkeypatch, tier, said):
    monkeypatch.setattr(doctor, "shared_sandbox", lambda: Sandbox(tier))
    rows = dict(doctor.needs(PRESETS["ladi_rl_code_qwen3_8b"]()))
    assert said in rows["generated programs"]
    assert "generated programs" not in dict(doctor.needs(PRESETS["cd3_tiny"]()))
