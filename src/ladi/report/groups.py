"""Which evaluations belong in one plot, or in one row of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import TypeVar

from ladi.report.data import SETTINGS, Estimate, Evaluation

K = TypeVar("K", int, str)


def setting(evaluation: Evaluation, name: str) -> object:
    """A sampler setting; None for those of latents where a token-level model (no denoising steps) was sampled."""
    is_of_latents = name in ("num_steps", "guidance", "guidance_scale", "initial_noise", "noise_level")
    return None if is_of_latents and evaluation.num_steps == 0 else getattr(evaluation, name)


def by_seed(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Groups that differ in their seed alone."""
    groups: dict[tuple[object, ...], list[Evaluation]] = {}
    for e in evaluations:
        samples = e.num_samples, e.texts_per_latent, e.dtype, *(setting(e, name) for name in SETTINGS)
        key = (e.label, e.task, e.split, e.num_questions, *samples)
        groups.setdefault(key, []).append(e)
    return list(groups.values())


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean value, between the means of the intervals' ends."""
    value, low, high = (mean(getattr(e, name) for e in estimates) for name in ("value", "low", "high"))
    return Estimate(value, low, high)


def mean_estimates(estimates: Sequence[Mapping[K, Estimate]]) -> dict[K, Estimate]:
    """Means of those that all have."""
    shared = [key for key in estimates[0] if all(key in each for each in estimates)]
    return {key: mean_estimate([each[key] for each in estimates]) for key in shared}


def over_seeds(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations that differ in their seed alone as one: the first, with the means of what all of them measured."""
    merged = []
    for members in by_seed(evaluations):
        distinct = [e.distinct_valid for e in members if e.distinct_valid]
        use = [e.latent_use for e in members if e.latent_use]
        mean_of_all = replace(
            members[0],
            pass_at=mean_estimates([e.pass_at for e in members]),
            distinct_valid=mean_estimate(distinct) if len(distinct) == len(members) else None,
            latent_use=mean_estimates(use) if len(use) == len(members) else None,
        )
        merged.append(mean_of_all)
    return merged


def by_task(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(f"{evaluation.task}, {evaluation.split}", []).append(evaluation)
    return groups


def main_evaluations(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Of the evaluations of a task that share a label (a sweep), the one with the most samples; seeds are averaged."""
    best: dict[tuple[str, str, str], Evaluation] = {}
    for e in over_seeds(evaluations):
        key = (e.label, e.task, e.split)
        if key not in best or e.num_samples > best[key].num_samples:
            best[key] = e
    return list(best.values())


def curves(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Of `main_evaluations`, those with pass@k at several k."""
    return [e for e in main_evaluations(evaluations) if len(e.pass_at) > 1]


def sweeps(evaluations: Sequence[Evaluation], setting: str) -> list[list[Evaluation]]:
    """Groups that share label, task, split and every setting but one, in the order of that one; means over seeds."""
    groups: dict[tuple[object, ...], dict[float, Evaluation]] = {}
    for e in over_seeds(evaluations):
        value = getattr(e, setting)
        if value is None:
            continue
        key = (e.label, e.task, e.split, *(getattr(e, name) for name in SETTINGS if name != setting))
        points = groups.setdefault(key, {})
        if value not in points or e.num_samples > points[value].num_samples:
            points[value] = e
    return [[points[x] for x in sorted(points)] for points in groups.values() if len(points) > 1]


def numbered(evaluations: Sequence[Evaluation]) -> dict[str, int]:
    """The number of each label, in the order in which they come: its colour."""
    return {label: index for index, label in enumerate(dict.fromkeys(e.label for e in evaluations))}


WIDENING = ("initial_noise", "temperature")
"""The settings that make a model's samples more diverse: a latent reasoner's and a token model's."""


def widened(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[Evaluation]]]:
    """Sweeps over a setting of `WIDENING`, with its name, and for comparison the other models' single evaluations, with
    no name; nothing where there is no sweep. Of evaluations at several k.
    """
    evaluations = [e for e in evaluations if len(e.pass_at) > 1]
    found = [(name, group) for name in WIDENING for group in sweeps(evaluations, name)]
    swept = {(e.label, e.task, e.split) for _, group in found for e in group}
    others = [e for e in main_evaluations(evaluations) if (e.label, e.task, e.split) not in swept]
    return [*found, *(("", [e]) for e in others)] if found else []
