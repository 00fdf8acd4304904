"""How much better one model is than another on the same questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ladi.metrics.passk import bootstrap_interval, pass_at_k
from ladi.report.data import Estimate, Evaluation, PerQuestion
from ladi.report.groups import by_seed


@dataclass(frozen=True)
class Difference:
    """A model's pass@k and distinct solutions less those of the model it is compared with."""

    label: str
    pass_at: dict[int, Estimate]
    """k -> difference of pass@k, as fractions."""
    num_distinct: Estimate | None
    """None where the models had other numbers of samples, with which the count grows."""


def differences(evaluations: Sequence[Evaluation], against: str) -> list[Difference]:
    """Differences of every other model from `against`, with 95 % bootstrap intervals over questions.

    Both models are resampled with the same questions, so that what makes a question hard for both does not widen the
    interval. Evaluations that differ in their seed alone are averaged question by question; what varies between seeds
    is not in the interval.

    Raises:
        ValueError: if no model or several bear that label, others had other questions, or a record lacks the counts.
    """
    models = by_seed(evaluations)
    found = [members for members in models if members[0].label == against]
    if len(found) != 1:
        labels = ", ".join(repr(label) for label in dict.fromkeys(e.label for e in evaluations))
        raise ValueError(f"{len(found)} models bear the label {against!r}; compare with one of these: {labels}")
    base = found[0]
    return [difference(members, base) for members in models if members is not base]


def difference(model: Sequence[Evaluation], base: Sequence[Evaluation]) -> Difference:
    """That of two models, each with one evaluation a seed."""
    for e in (*model, *base):
        if (e.task, e.split, e.num_questions) != (base[0].task, base[0].split, base[0].num_questions):
            raise ValueError(
                f"{e.path}: {e.num_questions} questions of {e.task} {e.split} cannot be paired with "
                f"{base[0].num_questions} of {base[0].task} {base[0].split} in {base[0].path}"
            )
        if None not in (a := e.questions_sha256, b := base[0].questions_sha256) and a != b:
            raise ValueError(
                f"{e.path} and {base[0].path} asked different questions of {e.task} {e.split} (key "
                "'questions_sha256'): the task's settings differ; they cannot be paired"
            )

    def of(measure: Callable[[Evaluation], list[float]]) -> Estimate:
        means = [np.mean([measure(e) for e in members], axis=0) for members in (model, base)]
        values = means[0] - means[1]
        return Estimate(float(values.mean()), *bootstrap_interval(values))

    is_alike = len({e.num_samples for e in (*model, *base)}) == 1
    ks = sorted(set.intersection(*(set(e.pass_at) for e in (*model, *base))))
    return Difference(
        label=model[0].label,
        pass_at={
            k: of(lambda e, k=k: [pass_at_k(e.num_samples, c, k) for c in per_question(e).num_correct]) for k in ks
        },
        num_distinct=of(lambda e: [float(n) for n in per_question(e).num_distinct]) if is_alike else None,
    )


def per_question(evaluation: Evaluation) -> PerQuestion:
    if evaluation.per_question is None:
        raise ValueError(f"{evaluation.path}: key 'per_question' is missing; evaluate again with this version of ladi")
    return evaluation.per_question
