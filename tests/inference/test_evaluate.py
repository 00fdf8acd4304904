"""Evaluation on small models: correlated samples kept apart, settings that contradict each other."""

from itertools import combinations
from pathlib import Path

import pytest
import torch

from ladi.inference import evaluate as evaluation
from ladi.inference.evaluate import EvalConfig, by_latent, evaluate, judge, latent_use
from ladi.inference.models import Drawn, MainCost
from ladi.models.assistant import AssistantConfig, LatentAssistant
from ladi.models.generation import SampleConfig
from ladi.models.reasoner import LatentReasoner, ReasonerConfig
from ladi.models.vae import ThoughtVAE, ThoughtVAEConfig
from ladi.tasks.base import Problem, Verdict
from ladi.tasks.countdown import Countdown
from tests.conftest import stop_every_third, tiny_backbone

TASK = Countdown(size=3, max_input=20)


def settings(**fields) -> EvalConfig:
    base = {"model_dir": Path("unused"), "task": TASK, "num_questions": 3, "num_samples": 6, "ks": (1, 2)}
    return EvalConfig(**{**base, **fields})


def test_pass_at_k_over_and_within_latents_is_that_of_brute_force():
    correct = [[1, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0]]  # 2 questions, 3 latents of 2 texts
    verdicts = [[Verdict(correct=bool(c), reason="") for c in row] for row in correct]
    config = settings(texts_per_latent=2, sample=SampleConfig(temperature=1.0))
    found = by_latent(verdicts, config)
    for k in (1, 2):
        over = [
            sum(any(row[2 * i] for i in chosen) for chosen in combinations(range(3), k))
            / len(list(combinations(range(3), k)))
            for row in correct
        ]
        assert found["over_latents"][str(k)]["value"] == pytest.approx(sum(over) / 2)
        within = [
            any(row[2 * latent + i] for i in chosen)
            for row in correct
            for latent in range(3)
            for chosen in combinations(range(2), k)
        ]
        assert found["within_latent"][str(k)]["value"] == pytest.approx(sum(within) / len(within))


def test_texts_of_a_latent_stand_together(reasoner):
    """One latent, six texts: no pass@k over latents beyond 1; six latents of one text: nothing within."""
    sample = SampleConfig(num_steps=2, temperature=1.0)
    record = evaluate(settings(texts_per_latent=6, sample=sample), reasoner)
    assert set(record["pass@k by latent"]["over_latents"]) == {"1"}
    assert set(record["pass@k by latent"]["within_latent"]) == {"1", "2"}
    assert record["latent_diversity"] is None
    apart = evaluate(settings(sample=sample), reasoner)
    assert apart["pass@k by latent"] is None
    assert 1 < apart["latent_diversity"]["vendi"]["value"] < 6
    assert apart["latent_diversity"]["distance"]["value"] > 0


def test_results_do_not_depend_on_how_many_questions_are_sampled_at_once(reasoner, monkeypatch):
    """Each question has its own random numbers."""
    seen = []

    def watched(task, problems, texts, whole):
        seen.append([text for row in texts for text in row])
        return judge(task, problems, texts, whole)

    monkeypatch.setattr(evaluation, "judge", watched)
    for model in (reasoner, reasoner.backbone):
        for rows in (6, 1000):
            sample = SampleConfig(num_steps=3, noise_level=0.7, temperature=1.0)
            evaluate(settings(sample=sample, rows_at_once=rows), model)
    assert [*seen[0], *seen[1], *seen[2]] == seen[3]
    assert [*seen[4], *seen[5], *seen[6]] == seen[7]
    assert len(set(seen[3] + seen[7])) > 20


@pytest.fixture
def passes():
    """`passes(lm)` begins to count the positions of a language model's passes; `passes.total` is their sum."""

    class Passes:
        total = 0

        def __call__(self, lm):
            lm.model.register_forward_pre_hook(self.count, with_kwargs=True)

        def count(self, module, args, kwargs):
            self.total += kwargs["inputs_embeds"].shape[:2].numel()

    return Passes()


@pytest.mark.parametrize(
    ("fields", "sample"),
    [
        ({}, {}),
        ({}, {"guidance_scale": 2.0}),
        ({"texts_per_latent": 2}, {"temperature": 1.0}),
        ({"rows_at_once": 6}, {"guidance": 1.0, "noise_level": 0.7}),
        ({"readout": "vae"}, {"guidance_scale": 2.0}),
    ],
    ids=str,
)
def test_the_tokens_processed_are_what_hooks_count(passes, monkeypatch, fields, sample):
    """Of questions of different lengths, and of trajectories that stop at different blocks."""
    vae = ThoughtVAE.from_backbone(
        ThoughtVAEConfig(num_latents=2, latent_width=4, max_block_tokens=6, reads_context=True), tiny_backbone()
    )
    shape = ReasonerConfig(num_latents=2, latent_width=4, max_blocks=3, max_answer_tokens=8)
    reasoner = LatentReasoner.from_backbone(shape, tiny_backbone(), vae).eval()
    stop_every_third(monkeypatch, reasoner)
    passes(reasoner.backbone.lm)
    passes(vae.decoder.lm)
    config = settings(sample=SampleConfig(num_steps=3, **sample), **fields)
    problems = [TASK.problem("test", i) for i in range(3)]
    assert len({len(problem.question) for problem in problems}) > 1
    assert evaluation.run_samples(reasoner, problems, config).tokens_processed == passes.total > 0


def test_the_tokens_processed_by_other_models_are_what_hooks_count_too(passes):
    problems = [TASK.problem("test", i) for i in range(3)]
    assistant = LatentAssistant.from_backbones(AssistantConfig(latent_width=4), tiny_backbone(), tiny_backbone(), "")
    passes(assistant.policy.backbone.lm)
    passes(assistant.main.lm)
    for model in (assistant, assistant.main):
        passes.total = 0
        judged = evaluation.run_samples(model, problems, settings(sample=SampleConfig(temperature=1.0)))
        assert judged.tokens_processed == passes.total > 0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"ks": (1, 7)}, "ks are numbers of samples, from 1 to num_samples"),
        ({"ks": ()}, "ks are numbers of samples, from 1 to num_samples"),
        ({"texts_per_latent": 4, "sample": SampleConfig(temperature=1.0)}, "must be a multiple of texts_per_latent"),
        ({"latent_use_samples": 4, "num_questions": 1}, "num_questions 2 or more; or set latent_use_samples 0"),
        ({"texts_per_latent": 2}, "are all alike"),
        ({"texts_per_latent": 2, "readout": "vae", "sample": SampleConfig(temperature=1.0)}, "are all alike"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        settings(**fields)


def test_a_record_keeps_the_counts_of_each_question(backbone, monkeypatch):
    def judged(task, problems, texts, whole):
        solved = [[("a", True), ("a", True), ("b", True)], [("", False), ("c", True), ("", False)]]
        return [[Verdict(correct=good, reason="", canonical=name) for name, good in row] for row in solved]

    monkeypatch.setattr(evaluation, "judge", judged)
    config = settings(num_questions=2, num_samples=3, sample=SampleConfig(temperature=1.0))
    record = evaluate(config, backbone)
    assert record["per_question"] == {"num_correct": [3, 1], "num_distinct": [2, 1]}
    assert record["pass@k"]["1"]["value"] == pytest.approx((3 + 1) / 6)
    assert record["distinct_valid"]["value"] == 1.5


def test_latent_settings_are_refused_for_a_token_level_model(backbone):
    config = settings(texts_per_latent=2, sample=SampleConfig(temperature=1.0))
    with pytest.raises(ValueError, match="has no latents"):
        evaluate(config, backbone)


def test_greedy_samples_of_a_token_level_model_are_refused_unless_there_is_one(backbone):
    with pytest.raises(ValueError, match=r"num_samples is 6: use --sample\.temperature 1, or --num-samples 1 --ks 1"):
        evaluate(settings(), backbone)
    record = evaluate(settings(num_samples=1, ks=(1,)), backbone)
    assert record["distinct_valid"]["value"] == record["pass@k"]["1"]["value"]


def test_texts_without_a_verdict_are_counted(backbone, monkeypatch):
    reasons = ["timeout", "not judged: the judge died", "wrong answer"]

    def judged(task, problems, texts, whole):
        return [[Verdict(correct=False, reason=reasons[i % 3]) for i in range(len(row))] for row in texts]

    monkeypatch.setattr(evaluation, "judge", judged)
    record = evaluate(settings(num_samples=5, sample=SampleConfig(temperature=1.0)), backbone)
    assert record["not_judged"] == {"timed_out": 3 * 2, "failed": 3 * 2}


def test_texts_of_a_token_level_model_are_as_long_as_asked(backbone, reasoner, monkeypatch):
    seen = []

    def watched(task, problems, texts, whole):
        seen.append(max(len(text) for row in texts for text in row))
        return judge(task, problems, texts, whole)

    monkeypatch.setattr(evaluation, "judge", watched)
    sample = SampleConfig(num_steps=2, temperature=1.0)
    records = [evaluate(settings(max_text_tokens=length, sample=sample), backbone) for length in (5, 30)]
    assert 0 < seen[0] <= 5 < seen[1] <= 30  # a character is a token, and a random model seldom ends a text
    assert [record["max_text_tokens"] for record in records] == [5, 30]
    record = evaluate(settings(max_text_tokens=1, sample=sample), reasoner)
    assert record["max_text_tokens"] is None
    assert 1 < seen[2] <= 8


@pytest.mark.parametrize(
    ("num_questions", "rows_at_once", "sizes"),
    [(2, 8, [2]), (3, 8, [3]), (4, 8, [2, 2]), (5, 8, [2, 3]), (7, 12, [3, 4]), (8, 12, [3, 3, 2]), (5, 100, [5])],
)
def test_shuffled_latents_are_those_of_another_question(monkeypatch, reasoner, num_questions, rows_at_once, sizes):
    """Latents that are the number of their question."""
    seen = []

    def draw(model, questions, num_latents, *_):
        own = torch.tensor([float(question) for question in questions])
        latents = own[:, None, None, None, None].expand(-1, num_latents, 1, 2, 4)
        return Drawn(latents, torch.ones(latents.shape[:2], dtype=torch.long), 0)

    def read(model, questions, drawn, *_):
        seen.append((questions, drawn.latents[:, 0, 0, 0, 0].tolist()))
        return [[""] * drawn.latents.shape[1] for _ in questions], 0, MainCost()

    monkeypatch.setattr(evaluation, "draw", draw)
    monkeypatch.setattr(evaluation, "read", read)
    meta = {"numbers": (1, 2, 3), "target": 6}
    problems = [Problem(question=str(i), steps=(), answer="", meta=meta) for i in range(num_questions)]
    found = latent_use(reasoner, problems, settings(latent_use_samples=4, rows_at_once=rows_at_once))
    assert list(found) == ["intact", "zeroed", "shuffled", "noise"]
    for questions, latents in seen[2::4]:
        assert all(float(own) != given for own, given in zip(questions, latents, strict=True))
        assert sorted(map(float, questions)) == sorted(latents)
    assert [len(latents) for _, latents in seen[::4]] == sizes
    assert [question for questions, _ in seen[::4] for question in questions] == [p.question for p in problems]
