"""The warm start of DLR: a bound of the solutions' likelihood, after which trajectories stand for solutions."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy

from ladi.models.assistant import AssistantConfig, LatentAssistant, weights_hash
from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.decoding import append
from ladi.tasks.arithmetic import Arithmetic
from ladi.train import dlr_warmup, sft
from ladi.train.data import DataConfig, tokenize_pairs
from ladi.train.dlr_warmup import WarmStart
from ladi.train.loop import LoopConfig
from tests.conftest import ALPHABET, tiny_backbone

QUESTIONS = ["1,2,3:6", "4,5,20:100"]
SOLUTIONS = ["1+2=3,3+3=6", "4*5=20,20*5=100"]
CONFIG = AssistantConfig(num_latents=2, latent_width=3, std=0.7, max_answer_tokens=8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def warm_start(main=None) -> WarmStart:
    assistant = LatentAssistant.from_backbones(CONFIG, tiny_backbone(), main or tiny_backbone(), "main")
    return WarmStart(assistant, tiny_backbone())


def batch(model, questions=QUESTIONS, solutions=SOLUTIONS, beta_share=1.0) -> dlr_warmup.Batch:
    target = model.assistant.main.tokenize(list(solutions), add_eos=True)
    return dlr_warmup.Batch(list(questions), list(solutions), target, beta_share)


def log_likelihood(assistant, question, solution, latents) -> float:
    """log p(solution, <eos> | question, latents): one row, no padding, no cache; latents beside the question's end."""
    main = assistant.main
    ids = main.tokenize([solution], add_eos=True)[0]
    soa = main.embed(torch.tensor([[main.soa]]))
    asked = main.embed(main.tokenize([question])[0])
    embeds = torch.cat([asked, assistant.projection(latents[None]), soa, main.embed(ids[:, :-1])], 1)
    n, t = asked.shape[1], len(latents)
    positions = torch.tensor([[*range(n), *range(n - t, n), *range(n, n + ids.shape[1])]])
    _, hidden = append(main, None, embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), positions)
    return -cross_entropy(main.logits(hidden[0, -ids.shape[1] :]), ids[0], reduction="sum").item()


@torch.no_grad()
def test_the_loss_is_that_of_a_conditional_vae():
    model, beta = warm_start(), 0.3
    policy = model.assistant.policy
    value, terms = dlr_warmup.loss(model, batch(model, beta_share=0.5), generator(), beta)
    posterior = model.encode(QUESTIONS, SOLUTIONS)
    noise = torch.randn(posterior.mean.shape, generator=generator())
    z = posterior.mean + (0.5 * posterior.log_var).exp() * noise
    answers, kls = [], []
    for i, (question, solution) in enumerate(zip(QUESTIONS, SOLUTIONS, strict=True)):
        answers.append(-log_likelihood(model.assistant, question, solution, z[i]))
        kl = 0.0
        for t in range(CONFIG.num_latents):  # the prior of a latent, by sampling up to it with those before forced
            forced = z[i : i + 1].clone()
            means = policy.means(policy.open([question]), forced)[0, t]
            mine = Normal(posterior.mean[i, t], (0.5 * posterior.log_var[i, t]).exp())
            kl += kl_divergence(mine, Normal(means, CONFIG.std)).sum().item()
        kls.append(kl)
    assert terms["loss/answer"].item() == pytest.approx(sum(answers) / 2, abs=1e-4)
    assert terms["loss/kl"].item() == pytest.approx(sum(kls) / 2, rel=1e-5)
    assert value.item() == pytest.approx(sum(answers) / 2 + 0.5 * beta * sum(kls) / 2, rel=1e-5)


@torch.no_grad()
def test_what_is_longer_than_a_model_is_named_before_the_pass():
    """The longer of the two: 10 tokens of question, 16 of solution with <eos>, 2 latents."""
    model = warm_start()
    for part, needed in ((model.encoder, 28), (model.assistant.policy.backbone, 12)):
        before, part.max_positions = part.max_positions, needed
        dlr_warmup.loss(model, batch(model), generator(), 1.0)
        part.max_positions = needed - 1
        with pytest.raises(
            ValueError, match=f"{needed} tokens, but the model has {needed - 1} positions: '4,5,20:100'"
        ):
            dlr_warmup.loss(model, batch(model), generator(), 1.0)
        part.max_positions = before


def test_a_solution_longer_than_the_main_model_is_named_by_the_stage(tmp_path):
    config = BackboneConfig(width=16, num_layers=1, num_heads=2, mlp_width=32, max_positions=20)
    Backbone.from_config(config, ALPHABET).save_pretrained(tmp_path / "main")
    stage = dlr_warmup.Config(
        out_dir=tmp_path / "run",
        data=DataConfig(task=Arithmetic(), num_train=20),
        main=str(tmp_path / "main"),
        backbone=replace(config, max_positions=512),
        assistant=CONFIG,
        free_steps=0,
        loop=LoopConfig(steps=1, batch_size=20, micro_batch_size=20),
    )
    with pytest.raises(ValueError, match="tokens, but the model has 20 positions"):
        dlr_warmup.main(stage)


@torch.no_grad()
def test_with_beta_1_it_bounds_the_likelihood_under_the_policy():
    model = warm_start()
    for parameter in model.assistant.main.decoder.layers.parameters():
        if parameter.ndim == 2:
            parameter.mul_(8)  # large weights make a random main model listen to the latents
    copies = batch(model, QUESTIONS[:1] * 500, SOLUTIONS[:1] * 500)
    bound = -dlr_warmup.loss(model, copies, generator(), 1.0)[0]
    latents = model.assistant.think(QUESTIONS[:1], 500, generator())
    log_probs, _ = dlr_warmup.solution_log_probs(model.assistant, copies, latents[0])
    assert bound <= log_probs.sum(1).double().exp().mean().log()


def test_solutions_are_padded_without_effect():
    model = warm_start()
    together, alone = model.encode(QUESTIONS, SOLUTIONS), model.encode(QUESTIONS[:1], SOLUTIONS[:1])
    torch.testing.assert_close(together.mean[:1], alone.mean, rtol=0, atol=1e-5)
    z = torch.randn(2, CONFIG.num_latents, CONFIG.latent_width, generator=generator())
    log_probs, written = dlr_warmup.solution_log_probs(model.assistant, batch(model), z)
    short = len(SOLUTIONS[0]) + 1
    assert (log_probs[0, short:] == 0).all()
    assert written[0, short:].all()


def test_different_trajectories_come_to_stand_for_different_solutions():
    """Of a main model that knows two answers of a question and, asked greedily, always gives the same."""
    main = tiny_backbone()
    both = sft.Batch(*tokenize_pairs(main, ["1:2", "1:2"], ["1", "2"]))
    optimizer = torch.optim.Adam(main.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        sft.loss(main, both, generator())[0].backward()
        optimizer.step()
    model, before = warm_start(main), weights_hash(main)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    source = generator(1)
    for step in range(200):
        share = 0.0 if step < 80 else 1.0
        value, _ = dlr_warmup.loss(model, batch(model, ["1:2"] * 8, ["1", "2"] * 4, share), source, 0.1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    texts = model.assistant.generate(["1:2"], num_latents=64).texts[0]
    assert min(texts.count("1"), texts.count("2")) >= 8
    assert weights_hash(main) == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"beta": -0.1}, "beta must be at least 0, got -0.1"),
        ({"free_steps": -1}, "free_steps must be at least 0, got -1"),
        ({"beta_warmup_steps": -1}, "beta_warmup_steps must be at least 0, got -1"),
        ({"free_steps": 1}, "set free_steps below it"),
    ],
)
def test_contradictions_are_refused(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        dlr_warmup.Config(
            out_dir=tmp_path, data=DataConfig(task=Arithmetic()), main="", loop=LoopConfig(steps=1), **fields
        )
