"""LaDi-RL and token GRPO: ratios, densities, KL, zero-variance groups, a bandit, resume."""

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ladi import bench_rl
from ladi.bench_rl import counted_tokens
from ladi.draws import Streams
from ladi.flow.logprob import gaussian_log_prob
from ladi.flow.times import sampling_grid
from ladi.models.decoding import Continuation
from ladi.models.generation import LatentPaths, generate_latents
from ladi.models.reasoner import LatentReasoner, ReasonerConfig
from ladi.rl.objective import SurrogateConfig, group_advantages
from ladi.tasks.base import TIMEOUT, Verdict
from ladi.tasks.countdown import Countdown
from ladi.tasks.jsonl import Jsonl
from ladi.tasks.math_pool import DIED
from ladi.train import grpo, rl
from ladi.train import rewards as rewards_module
from ladi.train.data import DataConfig
from ladi.train.loop import LoopConfig, Share
from ladi.train.optim import OptimConfig
from ladi.train.policy import RolloutBuffer, Texts, score, text_log_probs, text_statistics
from ladi.train.rewards import RewardConfig, RewardError, Rewards
from tests.conftest import stop_every_third, tiny_backbone

TASK = Countdown(size=3, max_input=20)
PROBLEMS = [TASK.problem("train", i) for i in range(3)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def settings(**policy) -> rl.Config:
    fields = {"num_latents": 4, "texts_per_latent": 3, "num_steps": 5, **policy}
    return rl.Config(
        out_dir=Path("unused"),
        data=DataConfig(task=TASK, num_train=100),
        model_dir=Path("unused"),
        policy=rl.PolicyConfig(**fields),
        loop=LoopConfig(steps=1, batch_size=3, micro_batch_size=3),
    )


def vowels(questions, texts, **columns):
    """A reward with contrast for a random model: even digits in the text."""
    return [sum(text.count(c) for c in "02468") / 4 for text in texts]


def sampled(reasoner, config: rl.Config) -> rl.Rollout:
    rewards = Rewards(config.reward, TASK, [vowels])
    return rl.sample_rollout(reasoner, PROBLEMS, rewards, config, generator())


@pytest.mark.parametrize(
    "fields",
    [{}, {"guidance": 2.0}, {"sde_window": (1, 3)}, {"replay_steps": 2}, {"initial_noise": 0.5, "noise_level": 0.3}],
    ids=str,
)
def test_replayed_densities_are_those_of_the_sampler(reasoner, fields, monkeypatch):
    """In the first block, whose context a question's trajectories share, and in later ones, which not all have."""
    stop_every_third(monkeypatch, reasoner)
    config = settings(**fields)
    rollout = sampled(reasoner, config)
    with torch.no_grad():
        now = rl.replay(reasoner, rollout, config.policy)
    assert len(now.blocks) == 3
    assert rollout.paths.num_blocks.tolist() == [[1, 3, 3, 1], [3, 3, 1, 3], [3, 1, 3, 3]]
    paths, steps = rollout.paths, rollout.steps
    for block, transitions in enumerate(now.blocks):
        normal = torch.distributions.Normal(paths.means[:, :, block, steps], paths.stds[steps][:, None, None])
        old = normal.log_prob(paths.states[:, :, block, steps + 1]).sum((-2, -1))
        new = transitions.log_probs * reasoner.velocity_head.out_features * 2  # mean over D x N -> sum
        real = (paths.num_blocks > block)[..., None].expand_as(new)
        torch.testing.assert_close((new - old)[real].exp(), torch.ones(int(real.sum())), rtol=0, atol=1e-4)


def test_ratios_are_to_the_first_replay_of_a_micro_batch(reasoner):
    config = settings(num_iterations=2, alpha=0.5)
    buffer = RolloutBuffer(lambda step, share: sampled(reasoner, config), 2)
    logged, replays, rollouts = [], [], []
    for step in range(3):
        buffer.prepare(step, Share(0, 3, lambda x: x))
        rollout, old = buffer.batch_at(step, 1, 3)
        rollouts.append(rollout)
        with torch.no_grad():
            logged.append(rl.loss(reasoner, rollout, config, old=old)[1])
            replays.append(rl.replay(reasoner, rollout, config.policy))
            for head in (reasoner.velocity_head, reasoner.backbone.lm.lm_head):
                head.weight.mul_(1.05)
    for name in ("latent/ratio_mean", "latent/ratio_max", "text/ratio_mean", "text/ratio_max"):
        assert logged[0][name] == logged[2][name] == 1  # each begins with texts of its own
    assert len(replays[0].blocks) == 3  # all have as many
    pairs = zip(*(r.blocks for r in replays[:2]), strict=True)
    ratio = torch.exp(torch.stack([after.log_probs - before.log_probs for before, after in pairs]))
    ratio = ratio[:, rollouts[0].latent_advantages != 0]
    assert float(logged[1]["latent/ratio_mean"]) == pytest.approx(float(ratio.mean()), rel=1e-5)
    assert float(logged[1]["latent/ratio_max"]) == pytest.approx(float(ratio.max()), rel=1e-5)
    assert logged[1]["text/ratio_max"] > 1.001


def test_in_bf16_the_first_update_has_the_gradient_of_fp32():
    """The sampler's own densities differ from a replay's by rounding, which 4,096 numbers add up to more than the clip
    range: with them a third of the transitions were clipped.
    """
    shape = ReasonerConfig(num_latents=16, latent_width=256, max_blocks=1, max_answer_tokens=8)
    reasoner = LatentReasoner.from_backbone(shape, tiny_backbone(), None)
    with torch.no_grad():
        reasoner.velocity_head.weight.normal_(0, 0.3, generator=generator(1))
    config = settings(alpha=1.0, num_latents=6)
    gradients = []
    with torch.autocast("cpu", torch.bfloat16):
        rollout = sampled(reasoner, config)
    for is_half in (False, True):
        reasoner.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            value, terms = rl.loss(reasoner, rollout, config)
        value.backward()
        assert terms["latent/clip_fraction"] == 0
        gradients.append(torch.cat([p.grad.flatten() for p in reasoner.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


def flow_loss_of(reasoner, rollout, question, trajectory, block, draw):
    """From the definition, one sequence and one noisy form at a time: mean squared error of the velocity."""
    paths, at = rollout.paths, (question, trajectory, block)
    ids = reasoner.backbone.tokenize([rollout.questions[question]], opening=True)
    prefix = reasoner.open(ids)
    for earlier in range(block):
        prefix, _ = reasoner.add_block(prefix, paths.latents[question, trajectory, earlier][None], torch.tensor([True]))
    noise, t = rollout.draws.noise[at][draw], rollout.draws.times[at][draw]
    x_t = (1 - t) * paths.latents[at] + t * noise
    v = reasoner.velocity(reasoner.context(prefix), x_t[None, None], t[None, None])[0, 0]
    return (v - (noise - paths.latents[at])).square().mean()


@pytest.mark.parametrize("fields", [{}, {"noise_level": 0.0}, {"replay_steps": 2, "replay_copies": 3}], ids=str)
def test_the_gradient_of_the_density_flow_loss_is_that_of_flow_matching_weighted_by_advantages(
    reasoner, fields, monkeypatch
):
    """mean_i A_i mean_s grad (flow loss / 2) on the trajectories' own blocks, whatever sampler drew them."""
    stop_every_third(monkeypatch, reasoner)
    config = settings(alpha=1.0, density="flow_loss", **fields)
    rollout = sampled(reasoner, config)
    num_draws = fields.get("replay_steps", config.policy.num_steps)
    assert rollout.draws.times.shape == (3, 4, 3, num_draws)
    value, terms = rl.loss(reasoner, rollout, config)
    assert terms["latent/ratio_max"] == 1
    reasoner.zero_grad()
    value.backward()
    found = {name: p.grad.clone() for name, p in reasoner.named_parameters() if p.grad is not None}
    reasoner.zero_grad()
    for question, trajectory in torch.cartesian_prod(torch.arange(3), torch.arange(4)):
        blocks = int(rollout.paths.num_blocks[question, trajectory])
        losses = [
            flow_loss_of(reasoner, rollout, question, trajectory, block, draw)
            for block in range(blocks)
            for draw in range(num_draws)
        ]
        (rollout.latent_advantages[question, trajectory] * torch.stack(losses).mean() / 2 / 12).backward()
    assert found
    for name, p in reasoner.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6)


def test_draws_fill_the_times_evenly_and_do_not_depend_on_other_questions_or_later_blocks(reasoner):
    rollout = sampled(reasoner, settings(density="flow_loss", replay_steps=4))
    part = (rollout.draws.times * 4).floor()
    assert (part == torch.arange(4)).all()
    paths, streams = rollout.paths, [Streams.of(0, [7, 8, 9]), Streams.of(0, [8])]
    together = rl.Draws.of(paths, 4, streams[0])
    short = {name: getattr(paths, name)[1:2, :, :1] for name in ("states", "means")}
    alone = rl.Draws.of(replace(paths, num_blocks=paths.num_blocks[1:2], **short), 4, streams[1])
    assert torch.equal(together.times[1:2, :, :1], alone.times)
    assert torch.equal(together.noise[1:2, :, :1], alone.noise)


def test_the_kl_of_the_density_flow_loss_is_half_the_squared_distance_of_velocities(reasoner):
    config = settings(density="flow_loss", beta=0.1)
    rollout = sampled(reasoner, config)
    with torch.no_grad():
        now = rl.replay(reasoner, rollout, config.policy)
        reasoner.velocity_head.weight.mul_(1.5)
        other = rl.replay(reasoner, rollout, config.policy)
    for a, b in zip(now.blocks, other.blocks, strict=True):
        half = (a.means - b.means).square().sum((-2, -1)) / 2
        torch.testing.assert_close(rl.transition_kl(a, b, "sum"), half)
        assert half.min() > 0


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_of_other_lengths_add_up_to_the_batch(reasoner, loss_type, monkeypatch):
    """The first question's trajectories have one block, the others' up to three."""
    stop_every_third(monkeypatch, reasoner)
    config = replace(settings(alpha=1.0), latent=SurrogateConfig(loss_type=loss_type))
    rollout = sampled(reasoner, config)
    rollout.paths.num_blocks[0] = 1
    rollout = replace(rollout, num_transitions=int(rollout.paths.num_blocks.sum()) * len(rollout.steps))
    first, rest = rollout.rows(torch.tensor([0])), rollout.rows(torch.tensor([1, 2]))
    short = {name: getattr(first.paths, name)[:, :, :1] for name in ("states", "means")}
    first = replace(first, paths=replace(first.paths, **short))
    parts = rl.loss(reasoner, first, config)[0] / 3 + rl.loss(reasoner, rest, config)[0] * 2 / 3
    whole = rl.loss(reasoner, rollout, config)[0]
    gradients = [torch.autograd.grad(loss, reasoner.velocity_head.weight)[0] for loss in (whole, parts)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)


def test_the_push_beside_the_drift_is_measured_where_trajectories_run(reasoner, monkeypatch):
    stop_every_third(monkeypatch, reasoner)
    paths = sampled(reasoner, settings(guidance=2.0)).paths
    assert paths.num_blocks[:, :3].tolist() == [[1, 3, 3], [3, 3, 1], [3, 1, 3]]
    strengths = []
    for question, trajectory in torch.cartesian_prod(torch.arange(3), torch.arange(4)):
        for block in range(int(paths.num_blocks[question, trajectory])):
            at = question, trajectory, block
            pushes = paths.pushes[at].flatten(1)
            drifts = paths.means[at].flatten(1) - pushes - paths.states[at][:-1].flatten(1)
            strengths += (pushes.norm(dim=1) / drifts.norm(dim=1)).tolist()
    assert rl.latent_statistics(paths)["latent/push_to_drift"].item() == pytest.approx(sum(strengths) / len(strengths))


def test_the_transition_kl_is_flow_grpos_closed_form(reasoner):
    config = settings()
    rollout = sampled(reasoner, config)
    with torch.no_grad():
        now = rl.replay(reasoner, rollout, config.policy)
        reasoner.velocity_head.weight.mul_(1.5)
        other = rl.replay(reasoner, rollout, config.policy)
    found = rl.transition_kl(now.blocks[0], other.blocks[0], "sum")
    # means differ by (1 + sigma^2 (1 - t) / 2t) dt (v - v'), so KL = -dt/2 (1/sigma + sigma (1 - t) / 2t)^2 |v - v'|^2
    times = sampling_grid(config.policy.num_steps)
    t, dt = times[rollout.steps], (times[rollout.steps + 1] - times[rollout.steps])
    sigma = now.blocks[0].stds[0, 0] / (-dt).sqrt()
    means = now.blocks[0].means - other.blocks[0].means
    v_difference = means / ((1 + sigma**2 * (1 - t) / (2 * t)) * dt)[:, None, None]
    closed = -dt / 2 * (1 / sigma + sigma * (1 - t) / (2 * t)) ** 2 * v_difference.square().sum((-2, -1))
    torch.testing.assert_close(found, closed)
    assert found.min() > 0


def assert_same_gradients(model, losses):
    """Every loss has the same gradient in every weight, and one that is not 0."""
    gradients = []
    for loss in losses:
        model.zero_grad()
        loss().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("alpha", "pieces"),
    [
        *((0.9, {"replay_copies": copies}) for copies in (1, 3, 7)),
        (1.0, {"replay_copies": 3}),
        (0.0, {"replay_texts": 1}),
        (0.5, {"replay_texts": 5}),
    ],
)
def test_a_replay_in_pieces_equals_one_pass(reasoner, alpha, pieces):
    config = settings(alpha=alpha)
    rollout = sampled(reasoner, config)
    configs = [config, replace(config, policy=replace(config.policy, **pieces))]
    assert_same_gradients(reasoner, [lambda c=c: rl.loss(reasoner, rollout, c)[0] for c in configs])


def test_a_replay_of_token_grpo_in_pieces_equals_one_pass():
    backbone = tiny_backbone()
    policy = grpo.PolicyConfig(num_generations=7, max_completion_length=8)
    token = settings()
    config = grpo.Config(
        out_dir=token.out_dir, data=token.data, model_dir=token.model_dir, policy=policy, loop=token.loop
    )
    rollout = grpo.sample_rollout(backbone, PROBLEMS, Rewards(config.reward, TASK, [vowels]), config, generator())
    configs = [replace(config, policy=replace(policy, replay_texts=texts)) for texts in (0, 1, 4)]
    assert_same_gradients(backbone, [lambda c=c: grpo.loss(backbone, rollout, c)[0] for c in configs])


def test_layers_computed_again_give_the_same_gradients(reasoner):
    config = settings(alpha=0.5)
    rollout = sampled(reasoner, config)

    def recomputed():
        reasoner.backbone.recompute_layers()
        return rl.loss(reasoner, rollout, config)[0]

    assert_same_gradients(reasoner, [lambda: rl.loss(reasoner, rollout, config)[0], recomputed])


def test_latent_and_text_losses_reach_what_they_should(reasoner):
    """Latents only: the velocity head, not the LM head's use of texts; texts only: not the velocity head."""
    for alpha, reaches in ((1.0, True), (0.0, False)):
        config = settings(alpha=alpha)
        rollout = sampled(reasoner, config)
        reasoner.zero_grad()
        value, terms = rl.loss(reasoner, rollout, config)
        value.backward()
        gradient = reasoner.velocity_head.weight.grad
        assert (gradient is not None and bool(gradient.abs().max() > 0)) == reaches
        assert ("loss/text" in terms) != reaches


def test_the_gradient_is_the_policy_gradient(reasoner):
    """-mean_i A_i mean_s grad log p, with log p the mean over dimensions, computed from the definition."""
    config = settings(alpha=1.0)
    rollout = sampled(reasoner, config)
    value, _ = rl.loss(reasoner, rollout, config)
    reasoner.zero_grad()
    value.backward()
    found = reasoner.velocity_head.weight.grad.clone()
    reasoner.zero_grad()
    now = rl.replay(reasoner, rollout, config.policy)
    real = torch.arange(len(now.blocks)) < rollout.paths.num_blocks[..., None]
    steps = torch.stack([b.log_probs.mean(-1) for b in now.blocks], dim=-1)
    per_trajectory = torch.where(real, steps, 0.0).sum(-1) / rollout.paths.num_blocks
    (-(rollout.latent_advantages * per_trajectory).mean()).backward()
    torch.testing.assert_close(found, reasoner.velocity_head.weight.grad, rtol=1e-4, atol=1e-8)


def test_groups_without_contrast_have_zero_gradient_and_are_counted(reasoner):
    config = settings()
    rewards = Rewards(config.reward, TASK, [lambda questions, texts, **columns: [1.0] * len(texts)])
    rollout = rl.sample_rollout(reasoner, PROBLEMS, rewards, config, generator())
    value, terms = rl.loss(reasoner, rollout, config)
    value.backward()
    assert value == 0
    assert all((p.grad == 0).all() for p in reasoner.parameters())
    assert terms["reward/zero_variance_share"] == 1


def test_leaving_out_groups_without_contrast_does_not_change_the_others(reasoner):
    """The same rollout, with one question's advantages set to 0 by hand, against a loss of the others alone."""
    config = settings()
    rollout = sampled(reasoner, config)
    silenced = replace(rollout, latent_advantages=rollout.latent_advantages.clone())
    silenced.latent_advantages[1] = 0
    silenced.text_advantages[1] = 0
    value, _ = rl.loss(reasoner, silenced, config)
    others = silenced.rows(torch.tensor([0, 2]))
    alone, _ = rl.loss(reasoner, replace(others, num_questions=2), config)
    torch.testing.assert_close(value, alone * 2 / 3, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"replay_texts": 2}, {"num_iterations": 2}], ids=str)
def test_leaving_out_texts_without_contrast_changes_neither_loss_nor_gradient(reasoner, fields, monkeypatch):
    """Against the loss with a KL to the same weights, which reads all texts and whose value and gradient are 0."""
    stop_every_third(monkeypatch, reasoner)
    config = settings(**fields)
    rollout = sampled(reasoner, config)
    rollout.text_advantages[0, 1:] = 0
    rollout.text_advantages[2, 0] = 0
    read = []

    def counted(backbone, prefix, ids, *more):
        read.append(len(ids))
        return text_log_probs(backbone, prefix, ids, *more)

    monkeypatch.setattr(rl, "text_log_probs", counted)
    found = {}
    for name, beta in (("few", 0.0), ("all", 1.0)):
        reference = copy.deepcopy(reasoner) if beta else None
        reasoner.zero_grad()
        value, _ = rl.loss(reasoner, rollout, replace(config, policy=replace(config.policy, beta=beta)), reference)
        value.backward()
        found[name] = [value.detach(), *(p.grad.clone() for p in reasoner.parameters() if p.grad is not None)]
    varied = int((rollout.text_advantages != 0).any(2).sum())
    assert 0 < varied < 9
    assert read == [3 * varied, 36, 36]
    torch.testing.assert_close(found["few"], found["all"], rtol=1e-4, atol=1e-6)


def bandit_step(reasoner, target, config, optimizer, seed) -> float:
    """One update on a reward of the latents themselves; returns the mean reward."""
    policy = config.policy
    questions = [p.question for p in PROBLEMS[:2]]
    paths: LatentPaths = generate_latents(reasoner, questions, policy.num_latents, policy.sampler(), generator(seed))
    rewards = torch.exp(-(paths.latents[:, :, 0] - target).square().mean((-2, -1)))
    none = torch.zeros(2, policy.num_latents, 1, 1, dtype=torch.long)
    no = none[..., 0].bool()
    rollout = rl.Rollout(
        questions=questions,
        paths=paths,
        texts=Texts(none, none.bool(), no, rewards[..., None], none[..., 0], no, no),
        latent_advantages=group_advantages(rewards, "group"),
        text_advantages=torch.zeros(2, policy.num_latents, 1),
        steps=torch.arange(policy.num_replayed()),
        draws=None if policy.density == "transitions" else rl.Draws.of(paths, policy.num_replayed(), generator(seed)),
        num_tokens=0,
        num_transitions=2 * policy.num_latents * policy.num_replayed(),
        num_questions=2,
        metrics={},
    )
    value, _ = rl.loss(reasoner, rollout, config)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return rewards.mean().item()


@pytest.mark.parametrize("fields", [{}, {"density": "flow_loss", "noise_level": 0.0}], ids=str)
def test_a_bandit_on_latents_reaches_95_percent_of_the_best_reward(fields):
    shape = ReasonerConfig(num_latents=1, latent_width=2, max_blocks=1)
    reasoner = LatentReasoner.from_backbone(shape, tiny_backbone(), None)
    config = settings(alpha=1.0, num_latents=64, texts_per_latent=1, num_steps=6, **fields)
    optimizer = torch.optim.Adam(reasoner.parameters(), lr=2e-3)
    target = torch.tensor([1.0, -1.0])
    history = []
    for seed in range(160):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - seed / 160)
        history.append(bandit_step(reasoner, target, config, optimizer, seed))
    assert history[0] < 0.4
    assert sum(history[-10:]) / 10 > 0.95


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"num_latents": 1, "texts_per_latent": 1}, "at least 2 texts"),
        ({"num_latents": 1}, "needs alpha 0"),
        ({"alpha": 1.5}, "alpha must be"),
        ({"noise_level": 0.0}, "needs noise_level > 0 .* or density flow_loss"),
        ({"temperature": 0.0}, "needs temperature > 0"),
        ({"alpha": 1.0, "temperature": 0.0}, "needs texts_per_latent 1"),
        ({"alpha": 0.0, "texts_per_latent": 1}, "text_advantage pooled"),
        ({"alpha": 0.9, "texts_per_latent": 1}, "text_advantage pooled; or set alpha 1"),
        ({"replay_steps": 5}, "only 4 steps are stochastic"),
        ({"sde_window": (3, 9)}, "sde_window must satisfy"),
        ({"sde_window": (4, 5)}, "only the last of 5 steps"),
        ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
        ({"rollout_texts": -2}, "rollout_texts must be at least 0, got -2"),
    ],
)
def test_contradictory_settings_are_refused_with_the_remedy(fields, match):
    with pytest.raises(ValueError, match=match):
        settings(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"texts_per_latent": 1, "alpha": 1.0},
        {"texts_per_latent": 1, "text_advantage": "pooled"},
        {"sde_window": (3, 5)},
        {"sde_window": (4, 5), "alpha": 0.0},
        {"noise_level": 0.0, "density": "flow_loss"},
        {"num_steps": 1, "density": "flow_loss"},
        {"replay_steps": 9, "density": "flow_loss", "num_iterations": 2},
    ],
    ids=str,
)
def test_the_remedies_of_refused_settings_train(reasoner, fields):
    config = settings(**fields)
    value, _ = rl.loss(reasoner, sampled(reasoner, config), config)
    value.backward()
    assert sum(p.grad.abs().sum() for p in reasoner.parameters() if p.grad is not None) > 0


# ---- rewards --------------------------------------------------------------------------------------------------------


def rewarded(function, **fields):
    rewards = Rewards(RewardConfig(**fields), TASK, [function])
    return rewards(PROBLEMS, [p.answer for p in PROBLEMS], whole=False)


def test_the_verifier_is_the_default_reward():
    texts = [PROBLEMS[0].answer, "1+1=2", PROBLEMS[2].answer]
    assert Rewards(RewardConfig(), TASK)(PROBLEMS, texts, whole=False).rewards == [1.0, 0.0, 1.0]


def test_verdicts_that_reached_a_time_limit_or_are_none_are_counted(backbone, monkeypatch):
    reasons = iter(["ok", TIMEOUT, DIED, TIMEOUT, TIMEOUT, "ok"])

    def judge(task, problems, texts):
        return [Verdict(correct=r == "ok", reason=r, canonical="x") for _, r in zip(texts, reasons, strict=False)]

    monkeypatch.setattr(rewards_module, "verify_all", judge)
    ids = torch.zeros(6, 2, dtype=torch.long)
    sampled = Continuation(ids, ids.bool(), torch.ones(6, dtype=torch.bool), ids.float(), 0)
    texts = score(backbone, Rewards(RewardConfig(), TASK), PROBLEMS[:2], sampled, (3, 1), whole=False)
    assert texts.timed_out.flatten().tolist() == [False, True, False, True, True, False]
    assert texts.unjudged.flatten().tolist() == [False, False, True, False, False, False]
    assert text_statistics(texts)["rollout/judge_timeouts"].item() == 0.5
    assert text_statistics(texts)["rollout/judge_failures"].item() == pytest.approx(1 / 6)
    assert text_statistics(texts.rows(torch.tensor([0])))["rollout/judge_timeouts"].item() == pytest.approx(1 / 3)


def test_functions_get_columns_and_are_weighted():
    seen = {}

    def function(questions, texts, **columns):
        seen.update(columns)
        return range(len(texts))

    config = RewardConfig(functions=("tests.train.test_rl:vowels",), weights=(3.0,))
    rewards = Rewards(config, TASK, [function])
    assert rewards(PROBLEMS, ["24", "b", "2"], whole=False).rewards == [1.5, 1.0, 2.75]
    assert seen["answer"] == [p.answer for p in PROBLEMS]
    assert seen["target"] == [p.meta["target"] for p in PROBLEMS]


def test_columns_of_own_rows_reach_rewards_and_are_named_where_one_is_missing(tmp_path):
    path = tmp_path / "my.jsonl"
    rows = [{"question": f"{i}?", "cot": "c", "answer": "1"} | ({"source": "web"} if i % 2 else {}) for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    task, seen = Jsonl(path=path), []
    problems = [task.problem("train", i) for i in range(6)]

    def noted(questions, texts, source, **columns):
        seen.extend(source)
        return [0.0] * len(texts)

    Rewards(RewardConfig(), task, [noted])(problems, ["1"] * 6, whole=False)
    assert seen == ["web" if int(p.question[:-1]) % 2 else None for p in problems]
    assert set(seen) == {"web", None}
    rewards = Rewards(RewardConfig(), task, [lambda questions, texts, sauce, **columns: [0.0] * len(texts)])
    with pytest.raises(RewardError, match=r"\(questions, texts, \*\*columns\), with the columns answer, steps, source"):
        rewards(problems, ["1"] * 6, whole=False)


@pytest.mark.parametrize(
    "half",
    [0.5, Fraction(1, 2), Decimal("0.5"), np.float32(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5)],
    ids=lambda value: type(value).__name__,
)
def test_a_number_of_any_kind_is_a_reward(half):
    assert rewarded(lambda questions, texts, **columns: [half, True, np.int64(3)]).rewards == [0.5, 1.0, 3.0]


@pytest.mark.parametrize("arrays", [np, torch], ids=lambda module: module.__name__)
def test_an_array_of_rewards_is_taken_unless_it_has_a_second_dimension(arrays):
    values = arrays.linspace(0, 1, 3)
    assert rewarded(lambda questions, texts, **columns: values).rewards == [0.0, 0.5, 1.0]
    with pytest.raises(RewardError, match=r"returned .*\[0\.\].*, not a finite number, .*; return a number"):
        rewarded(lambda questions, texts, **columns: values[:, None])


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda questions, texts, **columns: ["1.0"] * 3, "returned '1.0', not a finite number"),
        (lambda questions, texts, **columns: [b"1"] * 3, "returned b'1', not a finite number"),
        (lambda questions, texts, **columns: [10**400] * 3, "not a finite number"),
        (lambda questions, texts, **columns: [1j, torch.tensor(1j), 1], "returned 1j, not a finite number"),
        (lambda questions, texts, **columns: 1 / 0, "raised ZeroDivisionError"),
        (lambda questions, texts, **columns: [float("nan")] * 3, "returned nan, not a finite number"),
        (lambda questions, texts, **columns: [None] * 3, "returned None, not a finite number"),
        (lambda questions, texts, **columns: [1.0], "returned 1 values for 3 texts"),
    ],
)
def test_a_broken_reward_stops_with_the_sample(function, match):
    with pytest.raises(RewardError, match=match) as error:
        rewarded(function)
    assert PROBLEMS[0].question in str(error.value)


def test_a_reward_that_hangs_is_stopped():
    import time

    with pytest.raises(RewardError, match=r"took more than 0\.1 s"):
        rewarded(lambda questions, texts, **columns: time.sleep(5), time_limit=0.1)


@pytest.mark.parametrize("name", ["nonsense", "os:nothing", "no_such_module:f", "os:sep"])
def test_a_reward_that_cannot_be_loaded_is_named(name):
    with pytest.raises(ValueError, match="reward"):
        Rewards(RewardConfig(functions=(name,)), TASK)


# ---- the stages -----------------------------------------------------------------------------------------------------


def loop_settings(steps, **fields):
    optim = OptimConfig(lr=3e-3, warmup_steps=1, ema_decay=0.0)
    return LoopConfig(
        steps=steps, batch_size=3, micro_batch_size=3, optim=optim, log_every=1, checkpoint_every=2, **fields
    )


@pytest.fixture
def saved(tmp_path):
    """A reasoner and its backbone on disk."""
    backbone = tiny_backbone()
    shape = ReasonerConfig(num_latents=2, latent_width=4, max_blocks=2, max_answer_tokens=6)
    reasoner = LatentReasoner.from_backbone(shape, backbone, None)
    with torch.no_grad():
        reasoner.velocity_head.weight.normal_(0, 0.3, generator=generator(1))
    reasoner.save_pretrained(tmp_path / "reasoner")
    backbone.save_pretrained(tmp_path / "lm")
    return tmp_path


def run_rl(folder, out, steps, policy=None, micro=3, text=None):
    base = settings(**(policy or {}))
    config = replace(
        base,
        out_dir=folder / out,
        model_dir=folder / "reasoner",
        text=text or SurrogateConfig(),
        loop=replace(loop_settings(steps), micro_batch_size=micro),
    )
    return rl.main(config, [vowels])


def weights(folder):
    return LatentReasoner.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("policy", [{}, {"num_iterations": 2}, {"num_iterations": 2, "density": "flow_loss"}], ids=str)
def test_a_resumed_run_equals_the_uninterrupted_one(saved, policy, monkeypatch):
    whole = run_rl(saved, "whole", 6, policy)
    seen = 0
    sample = rl.sample_rollout

    def killed(*args):
        nonlocal seen
        seen += 1
        if seen == 3:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(rl, "sample_rollout", killed)
    with pytest.raises(KeyboardInterrupt):
        run_rl(saved, "cut", 6, policy)
    assert not (saved / "cut" / "final").exists()
    monkeypatch.setattr(rl, "sample_rollout", sample)
    cut = run_rl(saved, "cut", 6, policy)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut)[name]), name
    moved = weights(saved / "reasoner")
    assert any(not torch.equal(tensor, moved[name]) for name, tensor in weights(whole).items())


def test_checkpoints_fall_between_rollouts(saved):
    with pytest.raises(ValueError, match="multiple of 3"):
        run_rl(saved, "odd", 6, {"num_iterations": 3})


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_give_the_step_of_the_whole_batch(saved, loss_type):
    text = SurrogateConfig(loss_type=loss_type)
    one, three = (run_rl(saved, f"m{micro}", 1, {"alpha": 0.0}, micro, text) for micro in (3, 1))
    logs = [json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[0]) for path in (one, three)]
    assert logs[0]["optim/grad_norm"] == pytest.approx(logs[1]["optim/grad_norm"], rel=1e-3)
    assert logs[0]["reward/mean"] == pytest.approx(logs[1]["reward/mean"])


EVERY_UPDATE = {"reward/mean", "reward/between_latent_var", "reward/within_latent_var", "reward/zero_variance_share"}
EVERY_UPDATE |= {"rollout/distinct_correct", "text/entropy", "optim/grad_norm", "time/samples_per_s"}
"""What is logged of rollouts whether or not they teach anything."""


@pytest.mark.parametrize("reward", [vowels, lambda questions, texts, **columns: [1.0] * len(texts)])
@pytest.mark.parametrize("alpha", [1.0, 0.9, 0.0])
def test_every_update_logs_what_shows_a_collapse_also_without_contrast_or_text_loss(saved, reward, alpha):
    config = replace(settings(alpha=alpha, num_iterations=2), out_dir=saved / "run", model_dir=saved / "reasoner")
    rl.main(replace(config, loop=loop_settings(2)), [reward])
    logs = [json.loads(line) for line in (saved / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(logs) == 2
    for line in logs:
        assert EVERY_UPDATE | {"latent/spread", "latent/transition_entropy"} <= line.keys()
        assert 0 < line["text/entropy"] < math.log(40)
        texts = line["time/samples_per_s"] * line["time/step_s"]
        assert texts == pytest.approx(3 * 4 * 3 / 2)  # questions x latents x texts, shared by two steps


@pytest.mark.parametrize("reward", [vowels, lambda questions, texts, **columns: [1.0] * len(texts)])
def test_every_update_of_token_grpo_logs_it_too(saved, reward):
    path = run_grpo(saved, "grpo", 1, reward=reward)
    line = json.loads((path.parent / "metrics.jsonl").read_text())
    assert line.keys() >= EVERY_UPDATE
    assert line["time/samples_per_s"] * line["time/step_s"] == pytest.approx(3 * 6)


def run_grpo(folder, out, steps, reward=vowels, **policy):
    config = grpo.Config(
        out_dir=folder / out,
        data=DataConfig(task=TASK, num_train=100),
        model_dir=folder / "lm",
        policy=grpo.PolicyConfig(**{"num_generations": 6, "max_completion_length": 8, **policy}),
        loop=loop_settings(steps),
    )
    return grpo.main(config, [reward])


def test_grpo_raises_the_reward(saved):
    path = run_grpo(saved, "grpo", 30, num_generations=40)
    rewards = [json.loads(line)["reward/mean"] for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])


def test_a_kl_penalty_keeps_the_policy_nearer(saved):
    logs = []
    for beta in (1e-6, 100.0):
        path = run_grpo(saved, f"beta{beta}", 20, beta=beta, num_iterations=2)
        logs.append([json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()])
    free, held = logs
    assert free[0]["text/kl"] == pytest.approx(0, abs=1e-6)
    assert held[-1]["text/kl"] < 0.5 * free[-1]["text/kl"]
    assert free[0]["text/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert free[1]["text/ratio_max"] > 1.001  # the second step on one rollout is off policy


def test_rl_of_latents_runs_from_the_command_line(saved):
    """Reward functions by name, in a new process."""
    (saved / "my_rewards.py").write_text(
        "def short(questions, texts, **columns):\n    return [-len(t) for t in texts]\n"
    )
    command = "from ladi.cli import main; main()"
    out = saved / "cli"
    args = ["train", "rl", "--preset", "cd3_tiny", "--model-dir", str(saved / "reasoner"), "--out-dir", str(out)]
    args += ["--reward.functions", "my_rewards:short", "--loop.steps", "1", "--loop.batch-size", "2"]
    args += ["--loop.micro-batch-size", "2", "--policy.num-latents", "2", "--policy.texts-per-latent", "2"]
    done = subprocess.run(
        [sys.executable, "-c", command, *args], capture_output=True, text=True, check=False, cwd=saved
    )
    assert done.returncode == 0, done.stderr
    log = json.loads((out / "metrics.jsonl").read_text())
    assert log["reward/mean"] < 0


def test_log_prob_of_a_noiseless_step_is_refused():
    with pytest.raises(ValueError, match="std must be positive"):
        gaussian_log_prob(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))


def test_tokens_are_counted_pass_by_pass(saved):
    model = LatentReasoner.from_pretrained(saved / "reasoner")
    with counted_tokens(model.backbone.lm) as seen:
        prefix = model.open(model.backbone.tokenize(["1,2:3", "4,5:9"]))
        model.velocity(model.context(prefix), torch.zeros(2, 3, 2, 4), torch.ones(2, 3))
    model.open(model.backbone.tokenize(["1,2:3"]))
    assert seen == [2 * 6, 2 * 3 * 3]


def test_bench_rl_times_both_updates(saved):
    dirs = {"reasoner_dir": saved / "reasoner", "ar_dir": saved / "lm"}
    results = bench_rl.main(bench_rl.Config(**dirs, questions=1, updates=1, trl=False), Console(quiet=True))
    assert set(results) == {"LaDi-RL", "token GRPO"}
    assert all(row["update_s"] > 0 and row["update_tokens"] > 0 for row in results.values())
