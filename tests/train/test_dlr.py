"""The stages of DLR: ratios, the filter, a main model that stays frozen, resume, rewards that rise."""

import copy
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ladi.models.assistant import AssistantConfig, LatentAssistant, LatentPolicy, load_main, weights_hash
from ladi.models.backbone import Backbone, BackboneConfig
from ladi.models.decoding import continue_text, open_question
from ladi.rl.objective import SurrogateConfig
from ladi.rundir import latest_checkpoint
from ladi.tasks.countdown import Countdown
from ladi.train import dlr, dlr_warmup
from ladi.train.data import DataConfig
from ladi.train.loop import LoopConfig
from ladi.train.optim import OptimConfig
from ladi.train.policy import OldLogProbs
from ladi.train.rewards import RewardConfig, Rewards
from tests.conftest import tiny_backbone

TASK = Countdown(size=3, max_input=20)
PROBLEMS = [TASK.problem("train", i) for i in range(3)]
ASSISTANT = AssistantConfig(num_latents=3, latent_width=4, std=0.5, max_answer_tokens=6)
SMALL = BackboneConfig(family="llama", width=16, num_layers=1, num_heads=2, mlp_width=32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def even_digits(questions, texts, **columns):
    """A reward with contrast for a random model."""
    return [sum(text.count(c) for c in "02468") / 4 for text in texts]


def loop_settings(steps, lr=3e-3, **fields):
    optim = OptimConfig(lr=lr, warmup_steps=1, final_lr_fraction=1.0, ema_decay=0.0)
    sizes = {"batch_size": 3, "micro_batch_size": 3, "log_every": 1, "checkpoint_every": 2, **fields}
    return LoopConfig(steps=steps, optim=optim, **sizes)


def settings(folder=Path("unused"), steps=1, loop=None, train_main=False, **policy) -> dlr.Config:
    fields = {"num_generations": 6, "num_decoded": 6, **policy}
    return dlr.Config(
        out_dir=folder / "dlr",
        data=DataConfig(task=TASK, num_train=100),
        model_dir=folder / "warm" / "final",
        policy=dlr.PolicyConfig(**fields),
        train_main=train_main,
        projection_lr=1e-2,
        loop=loop or loop_settings(steps),
    )


@pytest.fixture
def saved(tmp_path):
    """A main model on disk and an assistant after two steps of warm-up.

    Large weights make the random main model listen: its greedy texts differ from one trajectory to another.
    """
    main_model = tiny_backbone()
    with torch.no_grad():
        for name, weight in main_model.named_parameters():
            if "layers" in name and weight.ndim == 2:
                weight.mul_(8)
    main_model.save_pretrained(tmp_path / "main")
    dlr_warmup.main(
        dlr_warmup.Config(
            out_dir=tmp_path / "warm",
            data=DataConfig(task=TASK, num_train=100),
            main=str(tmp_path / "main"),
            backbone=SMALL,
            assistant=ASSISTANT,
            loop=loop_settings(2),
        )
    )
    return tmp_path


@pytest.fixture
def assistant(saved) -> LatentAssistant:
    return LatentAssistant.from_pretrained(saved / "warm" / "final")


def sampled(assistant, config) -> dlr.Rollout:
    return dlr.sample_rollout(assistant, PROBLEMS, Rewards(RewardConfig(), TASK, [even_digits]), config, generator())


def other_policy(assistant) -> LatentPolicy:
    """A reference from which the assistant has moved away."""
    reference = copy.deepcopy(assistant.policy).requires_grad_(False)
    for parameter in reference.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator(7))
    return reference


def logs(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- the objective ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_on_policy_every_ratio_is_1_and_the_gradient_is_the_policy_gradient(assistant, level):
    config = settings(gamma=0.0, beta=0.0, value_weight=0.0, log_prob_reduction="sum")
    config = replace(config, latent=SurrogateConfig(importance_sampling_level=level))
    rollout = sampled(assistant, config)
    assert rollout.advantages.abs().max() > 0.1
    value, terms = dlr.loss(assistant, rollout, config)
    assert terms["latent/ratio_max"] == 1
    value.backward()
    prefix = assistant.policy.open(rollout.questions)
    means = dlr.read_trajectories(prefix, rollout.latents, assistant.policy.means, 0)
    torch.testing.assert_close(means, (rollout.latents - 0.5 * rollout.noise).flatten(0, 1))  # those of the sampler
    log_probs = torch.distributions.Normal(means, 0.5).log_prob(rollout.latents.flatten(0, 1)).sum(-1).mean(1)
    plain = -(rollout.advantages.flatten() * log_probs).mean()
    (expected,) = torch.autograd.grad(plain, assistant.policy.mean_head.weight)
    torch.testing.assert_close(assistant.policy.mean_head.weight.grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 5])
def test_a_replay_in_pieces_equals_one_pass(assistant, at_once):
    config = settings(gamma=0.5, beta=0.1, text_weight=1.0, temperature=1.0)
    rollout, reference = sampled(assistant, config), other_policy(assistant)
    gradients = []
    for pieces in (0, at_once):
        assistant.zero_grad()
        policy = replace(config.policy, replay_trajectories=pieces)
        dlr.loss(assistant, rollout, replace(config, policy=policy), reference)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in assistant.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().max() > 1e-3


def test_the_kl_from_another_reference_is_that_of_torch_and_falls_down_its_gradient(assistant):
    config = settings(filter="random", num_decoded=3, beta=0.5)
    rollout, reference = sampled(assistant, config), other_policy(assistant)
    rollout = replace(rollout, advantages=torch.zeros_like(rollout.advantages))

    def means(policy, rows):
        questions = [rollout.questions[i // 6] for i in rows]
        return policy.means(policy.open(questions), rollout.latents.flatten(0, 1)[rows])

    def term():
        prefix = assistant.policy.open(rollout.questions)
        every = dlr.read_trajectories(prefix, rollout.latents, assistant.policy.means, 0)
        return dlr.latent_term(assistant, rollout, every, OldLogProbs(), config, reference)

    rows = [6 * p + int(g) for p, kept in enumerate(rollout.decoded) for g in kept]
    ours, theirs = (torch.distributions.Normal(means(x, rows), x.std) for x in (assistant.policy, reference))
    expected = float(torch.distributions.kl_divergence(ours, theirs).sum(-1).mean().detach())
    value, stats = term()
    assert expected > 0.1
    assert float(stats["kl"]) == pytest.approx(expected, rel=1e-4)
    assert float(value.detach()) == pytest.approx(config.policy.beta * expected, rel=1e-4)
    value.backward()
    moved = [p for p in assistant.policy.parameters() if p.grad is not None]
    slope, step = torch.stack([p.grad.norm() for p in moved]).norm(), 1e-3
    with torch.no_grad():
        for p in moved:
            p -= step * p.grad / slope
        fall = expected - float(term()[1]["kl"])
    assert fall == pytest.approx(step * float(slope) / config.policy.beta, rel=0.1)


@pytest.mark.parametrize("kind", ["random", "value"])
def test_a_filter_keeps_exactly_k_and_the_others_have_no_gradient(assistant, kind):
    config = settings(filter=kind, num_decoded=4, gamma=0.0, beta=0.0)
    rollout = sampled(assistant, config)
    assert rollout.decoded.shape == (3, 4) == rollout.advantages.shape
    assert (rollout.decoded.diff(dim=1) > 0).all()
    assert rollout.texts.ids.shape[:3] == (3, 4, 1)

    def gradient(rollout):
        assistant.zero_grad()
        dlr.loss(assistant, rollout, config)[0].backward()
        return assistant.policy.mean_head.weight.grad.clone()

    kept = torch.zeros(3, 6, dtype=torch.bool).scatter(1, rollout.decoded, True)
    changed = rollout.latents.clone()
    changed[~kept] += 1.0
    before = gradient(rollout)
    assert before.abs().max() > 0
    torch.testing.assert_close(gradient(replace(rollout, latents=changed)), before, rtol=1e-4, atol=1e-6)
    changed = rollout.latents.clone()
    changed[kept] += 1.0
    assert (gradient(replace(rollout, latents=changed)) - before).abs().max() > 1e-3


def test_the_value_filter_takes_those_of_which_most_is_expected():
    values = torch.tensor([[0.1, 0.9, 0.5, 0.7], [4.0, 1.0, 3.0, 2.0]])
    assert dlr.choose("value", values, 2, generator()).tolist() == [[1, 3], [0, 2]]
    assert dlr.choose("none", values, 4, generator()).tolist() == [[0, 1, 2, 3]] * 2
    picks = [tuple(dlr.choose("random", values[:1], 2, generator(i))[0].tolist()) for i in range(60)]
    assert len(set(picks)) == 6  # every pair


def test_rewards_are_correctness_and_format_in_minus_one_and_one(assistant):
    policy = settings(format_weight=0.5).policy
    texts = sampled(assistant, settings()).texts
    verdicts = replace(texts, rewards=torch.tensor([1.0, 0.0]).repeat(9).view(3, 6, 1))
    finished = torch.tensor([True, True, False]).repeat(6).view(3, 6, 1)
    verdicts = replace(verdicts, finished=finished)
    total = dlr.total_rewards(verdicts, [], policy, are_users=False)
    assert total.flatten()[:6].tolist() == [1.5, -0.5, 0.5, -0.5, 1.5, -1.5]
    tags = replace(policy, format="tags")
    words = ["<think>a</think> <answer>b</answer>", "<think>a</think>", "<answer>b</answer>"] * 6
    total = dlr.total_rewards(verdicts, words, tags, are_users=False)
    assert total.flatten()[:6].tolist() == [1.5, -1.5, 0.5, -0.5, 0.5, -1.5]


@pytest.mark.parametrize("by", ["config", "argument"])
def test_rewards_of_the_user_are_used_as_they_are(assistant, by):
    named, given = (("tests.train.test_dlr:even_digits",), []) if by == "config" else ((), [even_digits])
    config = replace(settings(format_weight=0.5), reward=RewardConfig(functions=named))
    rollout = dlr.sample_rollout(assistant, PROBLEMS, Rewards(config.reward, TASK, given), config, generator())
    texts = assistant.main.detokenize(rollout.texts.ids.flatten(0, 2))
    expected = torch.tensor(even_digits([], texts)) + 0.5 * (2 * rollout.texts.finished.flatten().float() - 1)
    assert len(set(even_digits([], texts))) > 2
    assert rollout.texts.rewards.flatten().tolist() == expected.tolist()


# ---- cost -----------------------------------------------------------------------------------------------------------


@contextmanager
def counted(assistant):
    """A list of (rows, rows times tokens), one for each pass of the main model."""
    passes = []

    def hook(module, args, kwargs):
        rows, tokens, _ = kwargs["inputs_embeds"].shape
        passes.append((rows, rows * tokens))

    handle = assistant.main.lm.model.register_forward_pre_hook(hook, with_kwargs=True)
    yield passes
    handle.remove()


def cost(metrics, name):
    return [float(metrics[f"main/{name}forwards"]), float(metrics[f"main/{name}tokens"])]


def test_the_cost_of_rollouts_and_replays_is_what_hooks_count(assistant):
    config = settings(text_weight=1.0, temperature=1.0)
    with counted(assistant) as passes:
        rollout = sampled(assistant, config)
    assert cost(rollout.metrics, "") == [sum(x) for x in zip(*passes, strict=True)]
    with counted(assistant) as passes:
        parts = [dlr.loss(assistant, rollout.rows(torch.tensor([i])), config)[1] for i in range(3)]
    means = [sum(x) / 3 for x in zip(*(cost(part, "replay_") for part in parts), strict=True)]
    assert means == pytest.approx([sum(x) for x in zip(*passes, strict=True)])


def test_the_decoded_share_is_that_of_a_run_that_decodes_all(assistant):
    """All texts have the greatest length here, so that nothing about the undecoded ones is unknown."""
    assistant.main.eos = -1
    shares, costs = {}, {}
    for num_decoded in (6, 2):
        metrics = sampled(assistant, settings(num_decoded=num_decoded, filter="random")).metrics
        shares[num_decoded] = [float(metrics["main/decoded_share"]), float(metrics["main/decoded_token_share"])]
        costs[num_decoded] = cost(metrics, "")
    assert shares[6] == [1, 1]
    assert shares[2] == pytest.approx([some / every for some, every in zip(costs[2], costs[6], strict=True)])
    assert all(2 / 6 < share < 1 for share in shares[2])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_decoded": 3}, "filter none decodes all 6"),
        ({"num_decoded": 1, "filter": "random"}, "2 <= num_decoded"),
        ({"num_decoded": 7}, "2 <= num_decoded"),
        ({"text_weight": 1.0}, "temperature > 0"),
        ({"gamma": -1.0}, "gamma must be at least 0, got -1"),
        ({"train_main": True}, "text_weight"),
    ],
)
def test_contradictions_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        settings(**fields)


# ---- the stages -----------------------------------------------------------------------------------------------------


def alone(main: Backbone) -> list[str]:
    """The main model's own greedy answers, without latents."""
    return continue_text(main, open_question(main, [p.question for p in PROBLEMS], main.soa), 6)[0]


def test_the_main_model_stays_frozen_to_the_bit(saved, assistant):
    untouched = load_main(str(saved / "main"))
    trained: list[LatentAssistant] = []
    dlr_loss = dlr.loss

    def watched(model, *others):
        trained.append(model)
        return dlr_loss(model, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlr, "loss", watched)
        final = dlr.main(settings(saved, steps=3), [even_digits])
    model = trained[0]
    assert all(p.grad is None and not p.requires_grad for p in model.main.parameters())
    assert weights_hash(model.main) == weights_hash(untouched)
    assert alone(model.main) == alone(untouched)
    assert not (final / "main").exists()
    stored = load_file(latest_checkpoint(saved / "dlr") / "optimizer.safetensors")
    assert stored
    assert not [name for name in stored if "main." in name]
    changed = LatentAssistant.from_pretrained(final).state_dict()
    start = assistant.state_dict()
    for part in (
        "policy.mean_head.weight",
        "policy.backbone.lm.model.layers.0.mlp.up_proj.weight",
        "value.mlp.0.weight",
    ):
        assert not torch.equal(changed[part], start[part]), part


@pytest.mark.parametrize("fields", [{}, {"num_iterations": 2, "filter": "random", "num_decoded": 4}], ids=str)
def test_a_resumed_run_equals_the_uninterrupted_one(saved, fields, monkeypatch):
    def run(out):
        config = replace(settings(saved, 6, **fields), out_dir=saved / out)
        return dlr.main(config, [even_digits])

    whole = run("whole")
    calls, sample = 0, dlr.sample_rollout

    def killed(*args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(dlr, "sample_rollout", killed)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.setattr(dlr, "sample_rollout", sample)
    cut = run("cut")
    a, b = (LatentAssistant.from_pretrained(path).state_dict() for path in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_micro_batches_give_the_step_of_the_whole_batch(saved):
    norms = []
    for micro in (3, 1):
        config = settings(saved, loop=loop_settings(1, micro_batch_size=micro))
        dlr.main(replace(config, out_dir=saved / f"m{micro}"), [even_digits])
        norms.append(logs(saved / f"m{micro}")[0]["optim/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_dlr_raises_the_reward(saved):
    fields = {"num_generations": 24, "num_decoded": 24, "gamma": 0.0}
    dlr.main(settings(saved, loop=loop_settings(40, lr=1e-2, checkpoint_every=40), **fields), [even_digits])
    rewards = [entry["reward/mean"] for entry in logs(saved / "dlr")]
    assert sum(rewards[-5:]) > 1.3 * sum(rewards[:5]) > 0


def test_a_policy_can_explore_more_than_its_warm_start(saved, assistant):
    final = dlr.main(replace(settings(saved), std=2.0), [even_digits])
    explored = LatentAssistant.from_pretrained(final)
    assert assistant.policy.std == pytest.approx(ASSISTANT.std)
    assert explored.policy.std == pytest.approx(2.0)
    wide, narrow = (model.think(["3+4"], 64, generator()).std(1).mean() for model in (explored, assistant))
    assert wide > 2 * narrow
    with pytest.raises(ValueError, match="must be positive"):
        replace(settings(saved), std=-1.0)


def test_the_contrastive_term_parts_the_trajectories(saved):
    spreads = []
    for gamma in (0.0, 40.0):
        config = settings(saved, loop=loop_settings(40, lr=1e-2, checkpoint_every=40), gamma=gamma)
        dlr.main(replace(config, out_dir=saved / f"gamma{gamma}"), [even_digits])
        spreads.append(logs(saved / f"gamma{gamma}")[-1]["latent/spread"])
    assert spreads[1] > 1.1 * spreads[0]


def test_the_main_model_can_be_trained_too_and_is_saved_then(saved):
    before = weights_hash(load_main(str(saved / "main")))
    config = settings(saved, steps=2, text_weight=1.0, temperature=1.0, train_main=True)
    final = dlr.main(config, [even_digits])
    assert (final / "main").is_dir()
    loaded = LatentAssistant.from_pretrained(final)
    assert weights_hash(loaded.main) != before
    assert weights_hash(load_main(str(saved / "main"))) == before


def test_a_main_model_in_bfloat16_stays_so_from_warm_up_to_inference_and_is_not_trained(saved):
    folder, main_model = saved / "half", load_main(str(saved / "main"), "bfloat16")
    data, loop = DataConfig(task=TASK, num_train=100), loop_settings(1)
    warmup = dlr_warmup.Config(
        out_dir=folder / "warm",
        data=data,
        main=str(saved / "main"),
        main_dtype="bfloat16",
        backbone=SMALL,
        assistant=ASSISTANT,
        loop=loop,
    )
    final = dlr_warmup.main(warmup)
    dlr.main(settings(folder, text_weight=1.0, temperature=1.0), [even_digits])
    for place in (final, folder / "dlr" / "final"):
        assert json.loads((place / "config.json").read_text())["main"]["dtype"] == "bfloat16"
        loaded = LatentAssistant.from_pretrained(place)
        assert {p.dtype for p in loaded.main.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in loaded.policy.parameters()} == {torch.float32}
        assert weights_hash(loaded.main) == weights_hash(main_model)
        assert loaded.generate(["1,2,3:6"], num_latents=2).latents.isfinite().all()
    with pytest.raises(ValueError, match="train_main needs a main model in float32"):
        dlr.main(
            replace(settings(folder, text_weight=1.0, temperature=1.0, train_main=True), out_dir=folder / "x"),
            [even_digits],
        )


def test_text_gradients_reach_the_projection_through_the_frozen_main_model(assistant):
    config = settings(text_weight=1.0, temperature=1.0, gamma=0.0, beta=0.0)
    rollout = sampled(assistant, config)
    dlr.loss(assistant, rollout, config)[0].backward()
    assert assistant.projection.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in assistant.main.parameters())


@pytest.mark.parametrize("masked", [False, True])
def test_texts_that_were_cut_can_be_left_out_of_the_text_loss(assistant, masked):
    fields = {"text_weight": 1.0, "temperature": 1.0, "gamma": 0.0, "beta": 0.0}
    config = settings(mask_truncated_completions=masked, **fields)
    rollout = sampled(assistant, config)
    texts = rollout.texts
    assert 0 < texts.finished.sum() < texts.finished.numel()
    counted = texts.valid[texts.finished] if masked else texts.valid
    assert rollout.num_tokens == counted.sum()
    cut = replace(rollout, texts=replace(texts, finished=torch.zeros_like(texts.finished)))
    dlr.text_term(assistant, cut, OldLogProbs(), config)[0].backward()
    assert (assistant.projection.weight.grad.abs().max() == 0) == masked


def test_learning_rates_and_clipping_are_by_part(saved):
    treatment = dlr.treatment(settings(saved))
    assert treatment.lr_scale("policy.mean_head.weight") == 1
    assert treatment.lr_scale("projection.weight") == pytest.approx(1e-2 / 3e-3)
    assert treatment.is_clipped("projection.bias")
    assert not treatment.is_clipped("policy.log_std")


def test_warmup_makes_the_worked_solutions_likelier(saved):
    config = dlr_warmup.Config(
        out_dir=saved / "long",
        data=DataConfig(task=TASK, num_train=3),
        main=str(saved / "main"),
        backbone=SMALL,
        assistant=ASSISTANT,
        loop=loop_settings(40, lr=1e-2),
    )
    dlr_warmup.main(config)
    losses = [entry["loss/answer"] for entry in logs(saved / "long")]
    assert losses[-1] < losses[0] - 0.03
