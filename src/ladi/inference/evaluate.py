"""Task x model x sampler -> accuracy, pass@k, diversity, latent use and cost, as one JSON-ready record."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ladi.draws import Streams, normal
from ladi.inference.models import Drawn, Model, draw, load_model, read, sample_ar, vae_texts
from ladi.inference.text import judged_text
from ladi.metrics.diversity import cosine_similarity, mean_pairwise_distance, vendi_score
from ladi.metrics.passk import bootstrap_interval, pass_at_k
from ladi.models.assistant import LatentAssistant, MainCost
from ladi.models.backbone import Backbone, Dtype
from ladi.models.generation import LATENTS, TEXTS, SampleConfig
from ladi.models.reasoner import LatentReasoner
from ladi.rundir import json_fingerprint, provenance
from ladi.tasks import TaskConfig, verify_all
from ladi.tasks.base import Problem, Verdict

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is measured and how."""

    model_dir: Path
    """A saved reasoner (LaDiR), assistant (DLR), or language model of stage `sft` (autoregressive)."""
    main: str = ""
    """Where an assistant's main model lies now; empty: where it lay at training."""
    task: TaskConfig
    split: str = "test"
    num_questions: int = 500
    num_samples: int = 100
    """Texts per question: `texts_per_latent` from each latent trajectory, or as many AR samples."""
    texts_per_latent: int = 1
    """Texts read from each latent; above 1 the record also has pass@k over latents and within a latent."""
    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    max_text_tokens: int = 128
    """Longest text of a token-level model; a reasoner and an assistant have their own limit, `max_answer_tokens`."""
    readout: Literal["text", "vae"] = "text"
    """Read the LM head's answer, or the VAE decoder's text of the blocks."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    latent_use_samples: int = 0
    """Above 0, also measure pass@1 with latents zeroed, shuffled and replaced by noise, on that many trajectories."""
    label: str = ""
    """Name in tables and plots; empty takes the model's kind."""
    dtype: Dtype = "float32"
    """Of the model's weights. It runs on the accelerator that Accelerate finds, else on the CPU."""
    seed: int = 0
    rows_at_once: int = 1000
    """Texts decoded together; bounds memory."""

    def __post_init__(self):
        if self.max_text_tokens < 1:
            raise ValueError(f"max_text_tokens must be at least 1, got {self.max_text_tokens}")
        if not self.ks or min(self.ks) < 1 or max(self.ks) > self.num_samples:
            raise ValueError(
                f"ks are numbers of samples, from 1 to num_samples ({self.num_samples}), got {list(self.ks)}; set ks "
                f"(--ks 1 {self.num_samples}, for example) or num_samples"
            )
        if self.latent_use_samples and self.num_questions == 1:
            raise ValueError(
                "latents are shuffled across questions: latent_use_samples above 0 needs num_questions 2 or more; or "
                "set latent_use_samples 0"
            )
        if self.texts_per_latent < 1 or self.num_samples % self.texts_per_latent:
            raise ValueError(
                f"num_samples ({self.num_samples}) must be a multiple of texts_per_latent ({self.texts_per_latent})"
            )
        if self.texts_per_latent > 1 and (self.readout == "vae" or self.sample.temperature == 0):
            raise ValueError(
                "greedy and VAE texts of one latent are all alike: texts_per_latent above 1 needs readout text and a "
                "temperature above 0"
            )


@dataclass(frozen=True)
class Judged:
    """Texts and verdicts of P questions, G samples each."""

    texts: list[list[str]]
    verdicts: list[list[Verdict]]
    tokens_processed: int
    """Positions of all passes through all language models, padding and rows that wait for others included."""
    vendi: list[float]
    """Vendi score (cosine) of the finished first blocks of each question; empty without at least two latents."""
    distance: list[float]
    """Their mean pairwise distance, divided by the square root of the numbers in a block."""
    main_cost: MainCost
    """What DLR's main model did; nothing for other models."""

    @property
    def num_correct(self) -> list[int]:
        return [sum(v.correct for v in row) for row in self.verdicts]

    @property
    def not_judged(self) -> dict[str, int]:
        """Texts that count as wrong because judging reached a time limit, or failed."""
        verdicts = [v for row in self.verdicts for v in row]
        return {"timed_out": sum(v.timed_out for v in verdicts), "failed": sum(v.unjudged for v in verdicts)}


def chunks(problems: Sequence[Problem], size: int) -> Iterator[Sequence[Problem]]:
    """Consecutive pieces of `problems`."""
    for first in range(0, len(problems), size):
        yield problems[first : first + size]


def chunks_of_several(problems: Sequence[Problem], size: int) -> Iterator[Sequence[Problem]]:
    """The same, but a last problem that would stand alone joins the piece before it."""
    firsts = range(0, len(problems) - 1, size)
    for first in firsts:
        yield problems[first:] if first == firsts[-1] else problems[first : first + size]


def streams(config: EvalConfig, first: int, count: int) -> Streams:
    """Randomness of `count` questions from number `first` on, the same whatever the chunk they are in."""
    return Streams.of(config.seed, range(first, first + count))


def judge(task: TaskConfig, problems: Sequence[Problem], texts: list[list[str]], whole: bool) -> list[list[Verdict]]:
    """A verdict for every text; `whole` texts hold chain of thought and answer."""
    owners = [p for p, row in zip(problems, texts, strict=True) for _ in row]
    verdicts = iter(verify_all(task, owners, [judged_text(text, task, whole) for row in texts for text in row]))
    return [[next(verdicts) for _ in row] for row in texts]


def run_samples(
    model: Model, problems: Sequence[Problem], config: EvalConfig, progress: Progress | None = None
) -> Judged:
    """Sample and judge `config.num_samples` texts for every problem."""
    texts, verdicts, processed, main_cost = [], [], 0, MainCost()
    vendi, distance = [], []
    for chunk in chunks(problems, max(1, config.rows_at_once // config.num_samples)):
        source = streams(config, len(texts), len(chunk))
        of_texts = source.child(TEXTS)
        questions = [p.question for p in chunk]
        if isinstance(model, Backbone):
            new, tokens = sample_ar(
                model, questions, config.num_samples, config.max_text_tokens, config.sample.temperature, of_texts
            )
        else:
            num_latents = config.num_samples // config.texts_per_latent
            drawn = draw(model, questions, num_latents, config.sample, source.child(LATENTS))
            tokens = drawn.tokens_processed
            if num_latents > 1:
                first = drawn.latents[:, :, 0]
                vendi += [vendi_score(cosine_similarity(group)) for group in first.flatten(2)]
                distance += (mean_pairwise_distance(first) / first[0, 0].numel() ** 0.5).tolist()
            if config.readout == "vae" and isinstance(model, LatentReasoner):
                new, used = vae_texts(model, questions, drawn.latents, drawn.num_blocks, config.task.step_separator)
            else:
                new, used, cost = read(
                    model, questions, drawn, config.sample.temperature, of_texts, config.texts_per_latent
                )
                main_cost = main_cost + cost
            tokens += used
        texts += new
        verdicts += judge(config.task, chunk, new, whole=not isinstance(model, LatentReasoner))
        processed += tokens
        if progress:
            progress(len(texts), len(problems))
    return Judged(texts, verdicts, processed, vendi, distance, main_cost)


def latent_use(
    model: LatentReasoner | LatentAssistant, problems: Sequence[Problem], config: EvalConfig
) -> dict[str, Any]:
    """pass@1 of the text readout with latents intact, zeroed, shuffled across questions and replaced by noise.

    The last two keep the statistics of latents: shuffled ones are another question's, noise is Gaussian and as large
    (a reasoner's latents are standardised).
    """
    per_question = config.latent_use_samples
    shares: dict[str, list[float]] = {"intact": [], "zeroed": [], "shuffled": [], "noise": []}
    for chunk in chunks_of_several(problems, max(2, config.rows_at_once // per_question)):
        source = streams(config, len(shares["intact"]), len(chunk))
        questions = [p.question for p in chunk]
        drawn = draw(model, questions, per_question, config.sample, source.child(LATENTS))
        latents, num_blocks = drawn.latents, drawn.num_blocks
        scale = 1.0 if isinstance(model, LatentReasoner) else float(latents.std())
        noise = scale * normal(latents.shape, source).to(latents.device)
        forms = {
            "intact": drawn,
            "zeroed": Drawn(torch.zeros_like(latents), num_blocks, 0),
            "shuffled": Drawn(latents.roll(1, 0), num_blocks.roll(1, 0), 0),
            "noise": Drawn(noise, num_blocks, 0),
        }
        for name, altered in forms.items():
            texts, _, _ = read(model, questions, altered, config.sample.temperature, source.child(TEXTS))
            for row in judge(config.task, chunk, texts, whole=not isinstance(model, LatentReasoner)):
                shares[name].append(sum(v.correct for v in row) / len(row))
    return {name: interval(values) for name, values in shares.items()}


def by_latent(verdicts: list[list[Verdict]], config: EvalConfig) -> dict[str, dict[str, Any]]:
    """pass@k where the texts of one latent, which are correlated, are kept apart.

    `over_latents` takes the first text of each latent; `within_latent` takes the texts of one latent, averaged over
    latents.
    """
    per_latent = config.texts_per_latent
    num_latents = config.num_samples // per_latent
    groups = [[row[i : i + per_latent] for i in range(0, len(row), per_latent)] for row in verdicts]
    firsts = [sum(group[0].correct for group in row) for row in groups]
    counts = [[sum(v.correct for v in group) for group in row] for row in groups]
    return {
        "over_latents": {
            str(k): interval([pass_at_k(num_latents, c, k) for c in firsts]) for k in config.ks if k <= num_latents
        },
        "within_latent": {
            str(k): interval([sum(pass_at_k(per_latent, c, k) for c in row) / num_latents for row in counts])
            for k in config.ks
            if k <= per_latent
        },
    }


def interval(values: Sequence[float | int]) -> dict[str, float]:
    """Mean over questions and its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values)
    return {"value": float(sum(values) / len(values)), "low": float(low), "high": float(high)}


def evaluate(config: EvalConfig, model: Model | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """The record that `ladi eval --json` writes: pass@k, distinct valid solutions, latent use, cost, provenance.

    Raises:
        ValueError: if the readout or the samples do not fit the model, or the readout the task.
    """
    model = load_model(config.model_dir, config.dtype, config.main) if model is None else model
    is_ar = isinstance(model, Backbone)
    if is_ar and (config.readout == "vae" or config.latent_use_samples or config.texts_per_latent > 1):
        raise ValueError(
            "a token-level model has no latents: use readout text, latent_use_samples 0 and texts_per_latent 1"
        )
    if is_ar and config.sample.temperature == 0 and config.num_samples > 1:
        raise ValueError(
            f"a token-level model writes one text at temperature 0, and num_samples is {config.num_samples}: use "
            "--sample.temperature 1, or --num-samples 1 --ks 1"
        )
    if config.readout == "vae" and isinstance(model, LatentAssistant):
        raise ValueError("an assistant's latents are read by its main model: use readout text")
    if config.readout == "vae" and not config.task.cot_in_answer:
        raise ValueError(f"the VAE reads only chains of thought, and answers of {config.task.name!r} are not in them")
    problems = [config.task.problem(config.split, i) for i in range(config.num_questions)]
    start = time.perf_counter()
    judged = run_samples(model, problems, config, progress)
    wall_s = time.perf_counter() - start
    counts = judged.num_correct
    curve = {str(k): interval([pass_at_k(config.num_samples, c, k) for c in counts]) for k in config.ks}
    distinct = [len({v.canonical for v in row if v.correct}) for row in judged.verdicts]
    label = config.label or (
        "AR" if is_ar else "DLR" if isinstance(model, LatentAssistant) else f"LaDiR {config.readout}"
    )
    return {
        "label": label,
        "model_dir": str(config.model_dir),
        "task": config.task.name,
        "split": config.split,
        "num_questions": config.num_questions,
        "questions_sha256": json_fingerprint([p.question for p in problems]),
        "num_samples": config.num_samples,
        "max_text_tokens": config.max_text_tokens if is_ar else None,
        "readout": config.readout,
        "num_steps": config.sample.num_steps if isinstance(model, LatentReasoner) else 0,
        "guidance": config.sample.guidance,
        "guidance_scale": config.sample.guidance_scale,
        "initial_noise": config.sample.initial_noise,
        "noise_level": config.sample.noise_level,
        "temperature": config.sample.temperature,
        "texts_per_latent": config.texts_per_latent,
        "dtype": config.dtype,
        "pass@k": curve,
        "pass@k by latent": by_latent(judged.verdicts, config) if config.texts_per_latent > 1 else None,
        "distinct_valid": interval(distinct),
        "per_question": {"num_correct": counts, "num_distinct": distinct},
        "not_judged": judged.not_judged,
        "latent_diversity": {"vendi": interval(judged.vendi), "distance": interval(judged.distance)}
        if judged.vendi
        else None,
        "latent_use": latent_use(model, problems, config)
        if not isinstance(model, Backbone) and config.latent_use_samples
        else None,
        "tokens_processed": judged.tokens_processed,
        "main_model": {"forwards": judged.main_cost.forwards, "tokens": judged.main_cost.tokens}
        if isinstance(model, LatentAssistant)
        else None,
        "wall_s": wall_s,
        "seed": config.seed,
        **provenance(),
    }
