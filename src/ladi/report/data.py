"""Reads run folders: training metrics, evaluations, denoising traces.

A run folder holds, each file optional:

    config.json, provenance.json   shown as they are
    metrics.jsonl                  one {"step": int, "area/name": float, ...} per line
    eval/<name>.json               one evaluation, see `Evaluation`
    eval/denoising.json            traces of single questions, see `Denoising`

A malformed file raises ValueError with the file and the key, because a report must not
omit a result silently.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

JsonObject = dict[str, Any]

SETTINGS = ("readout", "num_steps", "guidance", "guidance_scale", "initial_noise", "noise_level", "temperature")
"""The fields of `Evaluation` that say how it was sampled."""


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PerQuestion:
    """Of each question, in order: correct samples, and distinct solutions among them."""

    num_correct: list[int]
    num_distinct: list[int]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One task x sampler evaluation; None marks a setting that the sampler does not have."""

    path: Path
    label: str
    """Names the model. Evaluations that share it differ in sampler settings only: they form a sweep."""
    model_dir: Path | None
    """Where the model was; None in older records."""
    task: str
    split: str
    num_questions: int
    questions_sha256: str | None
    """Names the questions; None in older records."""
    num_samples: int
    texts_per_latent: int
    dtype: str | None
    pass_at: dict[int, Estimate]
    """k -> pass@k, as fractions."""
    distinct_valid: Estimate | None
    """Mean number of distinct valid solutions among a question's samples."""
    per_question: PerQuestion | None
    """None in older records."""
    not_judged: int
    """Texts that count as wrong because judging reached a time limit, or failed."""
    latent_use: dict[str, Estimate] | None
    """What the text decoder was shown (intact, zeroed, shuffled, noise) -> pass@1, as fractions."""
    readout: str | None
    num_steps: float | None
    guidance: float | None
    guidance_scale: float
    """Classifier-free; 1 where a record does not name it."""
    initial_noise: float | None
    noise_level: float | None
    temperature: float | None
    tokens_processed: float | None
    wall_s: float | None
    seed: int | None
    command: str | None
    commit: str | None
    machine: str | None


@dataclass(frozen=True)
class Question:
    """One question: the text that its latent blocks decode to, at each denoising time."""

    question: str
    times: list[float]
    texts: list[list[str]]
    answer: str
    correct: bool


@dataclass(frozen=True)
class Pca:
    """Latents of one question on their first two principal components, at each denoising time."""

    question: str
    times: list[float]
    xy: list[list[tuple[float, float]]]
    """[time][trajectory] -> (x, y)."""
    correct: list[bool]


@dataclass(frozen=True)
class Denoising:
    questions: list[Question]
    pca: Pca | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run folder says."""

    run_dir: Path
    name: str
    config: JsonObject
    provenance: JsonObject
    metrics: dict[str, list[tuple[int, float]]]
    """Metric key -> (step, value), by step."""
    evaluations: list[Evaluation]
    denoising: Denoising | None
    reconstruction: dict[float, float] | None
    """Of a VAE: noise on the mean of latents, in standard deviations -> share of held-out blocks decoded exactly."""


@dataclass(frozen=True)
class Fields:
    """A JSON object that knows its file, so that a missing or wrong key can be named."""

    path: Path
    data: JsonObject
    prefix: str = ""

    def error(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.path}: key '{self.prefix}{key}' {problem}")

    def get(self, key: str, kind: type | tuple[type, ...], what: str) -> Any:
        """The value of `key`, which must be there and be of `kind`."""
        if key not in self.data:
            raise self.error(key, "is missing")
        value = self.data[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"must be {what}, got {value!r:.60}")
        return value

    def text(self, key: str) -> str:
        return self.get(key, str, "a string")

    def flag(self, key: str) -> bool:
        return self.get(key, bool, "true or false")

    def number(self, key: str) -> float:
        value = self.get(key, (int, float), "a number")
        if not math.isfinite(value):
            raise self.error(key, f"must be finite, got {value}")
        return float(value)

    def whole(self, key: str) -> int:
        return self.get(key, int, "a whole number")

    def array(self, key: str) -> list[Any]:
        return self.get(key, list, "a list")

    def object(self, key: str) -> "Fields":
        return Fields(self.path, self.get(key, dict, "an object"), f"{self.prefix}{key}.")

    def counts(self, key: str, length: int) -> list[int]:
        """A list of `length` whole numbers."""
        found = self.array(key)
        if len(found) != length or not all(type(x) is int for x in found):
            raise self.error(key, f"must hold a whole number for each of {length} questions")
        return found

    def has(self, key: str) -> bool:
        """False where a key that may be left out is missing or null."""
        return self.data.get(key) is not None

    def estimate(self, key: str) -> Estimate:
        entry = self.object(key)
        return Estimate(entry.number("value"), entry.number("low"), entry.number("high"))

    def objects(self, key: str) -> list["Fields"]:
        entries = self.array(key)
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise self.error(f"{key}[{i}]", f"must be an object, got {entry!r:.60}")
        return [Fields(self.path, entry, f"{self.prefix}{key}[{i}].") for i, entry in enumerate(entries)]


def read_json(path: Path) -> JsonObject:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in one eval/*.json file."""
    fields = Fields(path, read_json(path))
    pass_fields = fields.object("pass@k")
    if not pass_fields.data:
        raise fields.error("pass@k", "must not be empty")
    for k in pass_fields.data:
        if not k.isdecimal() or int(k) < 1:
            raise pass_fields.error(k, "must be a number of samples, 1 or more")
    ks = sorted(pass_fields.data, key=int)
    latent_use = fields.object("latent_use") if fields.has("latent_use") else None
    not_judged = fields.object("not_judged") if fields.has("not_judged") else None
    counts, num_questions = None, fields.whole("num_questions")
    if fields.has("per_question"):
        each = fields.object("per_question")
        counts = PerQuestion(each.counts("num_correct", num_questions), each.counts("num_distinct", num_questions))

    def number(key: str) -> float | None:
        return fields.number(key) if fields.has(key) else None

    def text(key: str) -> str | None:
        return fields.text(key) if fields.has(key) else None

    return Evaluation(
        path=path,
        label=fields.text("label"),
        model_dir=Path(fields.text("model_dir")) if fields.has("model_dir") else None,
        task=fields.text("task"),
        split=fields.text("split"),
        num_questions=num_questions,
        questions_sha256=text("questions_sha256"),
        num_samples=fields.whole("num_samples"),
        texts_per_latent=fields.whole("texts_per_latent") if fields.has("texts_per_latent") else 1,
        dtype=text("dtype"),
        pass_at={int(k): pass_fields.estimate(k) for k in ks},
        distinct_valid=fields.estimate("distinct_valid") if fields.has("distinct_valid") else None,
        per_question=counts,
        not_judged=sum(not_judged.whole(name) for name in not_judged.data) if not_judged else 0,
        latent_use={name: latent_use.estimate(name) for name in latent_use.data} if latent_use else None,
        readout=text("readout"),
        num_steps=number("num_steps"),
        guidance=number("guidance"),
        guidance_scale=fields.number("guidance_scale") if fields.has("guidance_scale") else 1.0,
        initial_noise=number("initial_noise"),
        noise_level=number("noise_level"),
        temperature=number("temperature"),
        tokens_processed=number("tokens_processed"),
        wall_s=number("wall_s"),
        seed=fields.whole("seed") if fields.has("seed") else None,
        command=text("command"),
        commit=text("commit"),
        machine=text("machine"),
    )


def read_question(fields: Fields) -> Question:
    times, texts = fields.array("times"), fields.array("texts")
    if len(times) != len(texts):
        raise fields.error("texts", f"has {len(texts)} entries for {len(times)} times")
    if not all(isinstance(row, list) and all(isinstance(block, str) for block in row) for row in texts):
        raise fields.error("texts", "must be a list of lists of strings, one list per time")
    answer, correct = fields.text("answer"), fields.flag("correct")
    return Question(fields.text("question"), [float(t) for t in times], texts, answer, correct)


def read_pca(fields: Fields) -> Pca:
    times, correct = fields.array("times"), fields.array("correct")
    xy = cast("list[list[list[float]]]", fields.array("xy"))
    if len(times) != len(xy):
        raise fields.error("xy", f"has {len(xy)} entries for {len(times)} times")
    if any(len(row) != len(correct) or any(len(point) != 2 for point in row) for row in xy):
        raise fields.error("xy", f"must hold one [x, y] for each of the {len(correct)} trajectories at every time")
    points = [[(float(x), float(y)) for x, y in row] for row in xy]
    return Pca(fields.text("question"), [float(t) for t in times], points, correct)


def read_denoising(path: Path) -> Denoising:
    """The traces in an eval/denoising.json file."""
    fields = Fields(path, read_json(path))
    questions = fields.objects("questions") if fields.has("questions") else []
    pca = fields.object("pca") if fields.has("pca") else None
    return Denoising([read_question(entry) for entry in questions], read_pca(pca) if pca else None)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric's (step, value) by step; a step logged again after a resume replaces the first."""
    by_key: dict[str, dict[int, float]] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is still being written
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not valid JSON ({error})") from error
        step = Fields(path, entry, f"line {number}: ").whole("step")
        for key, value in entry.items():
            if "/" in key and isinstance(value, int | float):
                by_key.setdefault(key, {})[step] = float(value)
    return {key: sorted(values.items()) for key, values in sorted(by_key.items())}


NOISE = "vae/exact_noise_"
"""Begins the keys of `reconstruction.json` that end with a level of noise."""


def read_reconstruction(path: Path) -> dict[float, float]:
    """What the stage `vae` measured on held-out blocks, by noise; without noise first."""
    fields = Fields(path, read_json(path))
    noisy = {float(key.removeprefix(NOISE)): fields.number(key) for key in fields.data if key.startswith(NOISE)}
    return {0.0: fields.number("vae/exact_mean"), **dict(sorted(noisy.items()))}


def read_run(run_dir: Path, name: str) -> Run:
    """Everything in one run folder; files that are not there are empty in the result."""
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such run folder")
    denoising_path, metrics_path = run_dir / "eval" / "denoising.json", run_dir / "metrics.jsonl"
    config_path, provenance_path = run_dir / "config.json", run_dir / "provenance.json"
    reconstruction_path = run_dir / "reconstruction.json"
    evaluation_paths = sorted(path for path in run_dir.glob("eval/*.json") if path != denoising_path)
    if not (evaluation_paths or any(p.exists() for p in (denoising_path, metrics_path, config_path))):
        below = sorted(str(path.parent) for path in run_dir.glob("*/config.json"))
        raise ValueError(
            f"{run_dir} holds no run: no metrics, no evaluations"
            + f"; name those in it: {', '.join(below)}" * bool(below)
        )
    return Run(
        run_dir=run_dir,
        name=name,
        config=read_json(config_path) if config_path.exists() else {},
        provenance=read_json(provenance_path) if provenance_path.exists() else {},
        metrics=read_metrics(metrics_path) if metrics_path.exists() else {},
        evaluations=[read_evaluation(path) for path in evaluation_paths],
        denoising=read_denoising(denoising_path) if denoising_path.exists() else None,
        reconstruction=read_reconstruction(reconstruction_path) if reconstruction_path.exists() else None,
    )


def run_names(run_dirs: Sequence[Path]) -> list[str]:
    """A short name for each folder: its own, with its parent's where two would be the same."""
    names = [path.resolve().name for path in run_dirs]
    return [
        f"{path.resolve().parent.name}/{name}" if names.count(name) > 1 else name
        for path, name in zip(run_dirs, names, strict=True)
    ]


def read_runs(run_dirs: Sequence[Path]) -> list[Run]:
    return [read_run(path, name) for path, name in zip(run_dirs, run_names(run_dirs), strict=True)]
