"""DLR's assistant and main model: densities, gradients, costs, files."""

import json

import pytest
import torch
from torch.distributions import Independent, Normal

from ladi.flow.logprob import gaussian_log_prob
from ladi.models.assistant import AssistantConfig, LatentAssistant, MainCost, load_main, weights_hash
from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.decoding import expand
from ladi.rl.contrastive import contrastive_loss
from tests.conftest import ALPHABET, tiny_backbone

QUESTIONS = ["1,2,3:6", "10,2,5:100"]
CONFIG = AssistantConfig(num_latents=4, latent_width=3, std=0.5, max_answer_tokens=6)


def small_llama() -> Backbone:
    """Another size, family and tokenizer than the main model's."""
    sizes = BackboneConfig(family="llama", width=16, num_layers=1, num_heads=2, mlp_width=32, seed=3)
    return Backbone.from_config(sizes, "0123456789,:abc")


@pytest.fixture
def assistant() -> LatentAssistant:
    return LatentAssistant.from_backbones(CONFIG, small_llama(), tiny_backbone(), "somewhere").eval()


def drawn(assistant, copies=3):
    prefix = expand(assistant.policy.open(QUESTIONS), copies)
    noise = torch.randn(len(QUESTIONS) * copies, 4, 3, generator=torch.Generator().manual_seed(1))
    return prefix, noise


@torch.no_grad()
def test_one_pass_over_sampled_latents_gives_the_means_that_they_were_drawn_from(assistant):
    prefix, noise = drawn(assistant)
    latents = assistant.policy.sample(prefix, noise)
    means = assistant.policy.means(prefix, latents)
    torch.testing.assert_close(means + 0.5 * noise, latents, rtol=1e-4, atol=1e-5)
    assert (means[0] - means[1])[1:].abs().max() > 1e-3  # later means depend on earlier latents
    torch.testing.assert_close(means[0, 0], means[1, 0])


@torch.no_grad()
def test_the_log_density_of_a_trajectory_is_that_of_torch(assistant):
    prefix, noise = drawn(assistant)
    latents = assistant.policy.sample(prefix, noise)
    means = assistant.policy.means(prefix, latents)
    ours = gaussian_log_prob(latents[:, :, None], means[:, :, None], assistant.policy.std, "sum").sum(1)
    theirs = Independent(Normal(means, torch.tensor(0.5)), 2).log_prob(latents)
    torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_the_contrastive_loss_is_that_of_finite_differences(assistant):
    prefix, noise = drawn(assistant)
    weight = assistant.policy.mean_head.weight

    def value():
        latents = assistant.policy.sample(prefix, noise).unflatten(0, (2, 3))
        return contrastive_loss(latents, "dot", temperature=1.0)

    (gradient,) = torch.autograd.grad(value(), weight)
    direction, step = gradient / gradient.norm(), 3e-3
    with torch.no_grad():
        weight += step * direction
        above = value()
        weight -= 2 * step * direction
        below = value()
    assert (above - below) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02)


def test_the_contrastive_loss_is_that_of_brute_force():
    z = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for p in range(2):
        for k in range(3):
            scores = [float((z[p, k] * z[p, j]).sum()) / (4 * 0.7) for j in range(3)]
            total -= torch.log_softmax(torch.tensor(scores), 0)[k].item()
    assert float(contrastive_loss(z, "dot", 0.7)) == pytest.approx(total / 6, rel=1e-5)
    unit = z / z.flatten(2).norm(dim=-1)[..., None, None]
    torch.testing.assert_close(contrastive_loss(z, "cosine", 0.5), contrastive_loss(unit, "dot", 0.5 / 4))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_contrastive_loss_stays_in_float32_under_autocast(similarity):
    z = torch.randn(2, 5, 8, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(z, similarity)
    assert torch.equal(found, contrastive_loss(z, similarity))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_contrastive_loss_of_equal_trajectories_is_log_g_and_falls_as_they_part(similarity):
    equal = torch.ones(1, 4, 2, 5)
    assert float(contrastive_loss(equal, similarity)) == pytest.approx(torch.tensor(4.0).log())
    parted = torch.eye(4).reshape(1, 4, 2, 2) * 30
    assert float(contrastive_loss(parted, similarity, 0.1)) < 0.01
    assert torch.isfinite(contrastive_loss(torch.full((1, 64, 32, 512), 100.0), similarity))


def test_an_unknown_similarity_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        contrastive_loss(torch.ones(1, 2, 1, 1), "dot", 0.0)


@torch.no_grad()
def test_a_shared_question_gives_the_texts_of_reading_it_anew(assistant):
    latents = assistant.think(QUESTIONS, 3, torch.Generator().manual_seed(0))
    together, _ = assistant.decode(QUESTIONS, latents)
    texts = assistant.main.detokenize(together.ids)
    for p, question in enumerate(QUESTIONS):
        for g in range(3):
            alone, _ = assistant.decode([question], latents[p : p + 1, g : g + 1])
            assert assistant.main.detokenize(alone.ids) == [texts[p * 3 + g]]
    rows = torch.tensor([1, 5])
    some, _ = assistant.decode(QUESTIONS, latents, rows)
    assert assistant.main.detokenize(some.ids) == [texts[1], texts[5]]


def test_the_latents_reach_the_main_model(assistant):
    latents = assistant.think(QUESTIONS, 2, torch.Generator().manual_seed(0)).requires_grad_()
    prefix, _ = assistant.main_prefix(QUESTIONS, latents)
    assistant.main.logits(prefix.hidden)[:, 5].sum().backward()
    assert (latents.grad.abs().sum((2, 3)) > 0).all()


def test_the_cost_is_what_hooks_count(assistant):
    counted = MainCost()

    def hook(module, args, kwargs):
        nonlocal counted
        rows, tokens, _ = kwargs["inputs_embeds"].shape
        counted = counted + MainCost(rows, rows * tokens)

    assistant.main.lm.model.register_forward_pre_hook(hook, with_kwargs=True)
    latents = assistant.think(QUESTIONS, 5, torch.Generator().manual_seed(0))
    assert counted == MainCost()
    _, cost = assistant.decode(QUESTIONS, latents, torch.tensor([0, 3, 6]), 1.0, torch.Generator().manual_seed(0))
    assert cost == counted
    assert cost.forwards > 2 + 3


def test_generate_returns_a_row_a_question(assistant):
    out = assistant.generate(QUESTIONS, num_latents=3, seed=1)
    assert [len(row) for row in out.texts] == [3, 3]
    assert out.latents.shape == (2, 3, 4, 3)
    means = assistant.generate(QUESTIONS, num_latents=3, noise_scale=0.0)
    torch.testing.assert_close(means.latents[:, 0], means.latents[:, 2])


def test_files_hold_the_assistant_alone_and_come_back_the_same(assistant, tmp_path):
    assistant.main.save_pretrained(tmp_path / "main")
    assistant.main_source = str(tmp_path / "main")
    assistant.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "main").exists()
    again = LatentAssistant.from_pretrained(tmp_path / "saved")
    assert again.generate(QUESTIONS, num_latents=2).texts == assistant.generate(QUESTIONS, num_latents=2).texts
    given = LatentAssistant.from_pretrained(tmp_path / "saved", assistant.main)
    assert weights_hash(given.main) == weights_hash(again.main)
    given.save_pretrained(tmp_path / "resaved")
    assert LatentAssistant.from_pretrained(tmp_path / "resaved").main_source == str(tmp_path / "main")


def test_a_main_model_that_was_trained_is_found_from_a_copy_too(assistant, tmp_path):
    assistant.main.requires_grad_(True)
    assistant.save_pretrained(tmp_path / "saved")
    for name, main in (("by place", ""), ("by object", assistant.main.requires_grad_(False))):
        LatentAssistant.from_pretrained(tmp_path / "saved", main).save_pretrained(tmp_path / name)
        copy = LatentAssistant.from_pretrained(tmp_path / name)
        assert weights_hash(copy.main) == weights_hash(assistant.main)


def test_another_main_model_is_refused(assistant, tmp_path):
    assistant.save_pretrained(tmp_path / "saved")
    other = Backbone.from_config(BackboneConfig(width=32, num_layers=2, num_heads=2, mlp_width=64, seed=9), ALPHABET)
    with pytest.raises(ValueError, match="trained with the main model of weights"):
        LatentAssistant.from_pretrained(tmp_path / "saved", other)


def test_the_main_model_is_loaded_in_the_dtype_of_its_hash_which_is_float32_where_none_is_named(assistant, tmp_path):
    assistant.main.save_pretrained(tmp_path / "main")
    where = str(tmp_path / "main")
    half = LatentAssistant.from_backbones(CONFIG, small_llama(), load_main(where, "bfloat16"), where)
    half.save_pretrained(tmp_path / "half")
    assert LatentAssistant.from_pretrained(tmp_path / "half").main.lm.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="bfloat16"):
        LatentAssistant.from_pretrained(tmp_path / "half", assistant.main)
    assistant.main_source = where
    assistant.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    del config["main"]["dtype"]
    path.write_text(json.dumps(config))
    assert LatentAssistant.from_pretrained(tmp_path / "old").main.lm.dtype == torch.float32


@pytest.mark.parametrize("fields", [{"num_latents": 0}, {"std": 0.0}, {"latent_width": 0}])
def test_bad_shapes_are_refused(fields):
    with pytest.raises(ValueError, match="need num_latents"):
        AssistantConfig(**fields)
