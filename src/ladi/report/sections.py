"""The sections of the report; each is None where its data is missing."""

import difflib
import html
import json
import math
from collections.abc import Callable, Sequence

from ladi.report import plots
from ladi.report.data import SETTINGS, Evaluation, Question, Run
from ladi.report.groups import by_task, curves, main_evaluations, sweeps, widened
from ladi.report.markup import Section, chip, code, figure, interval, legend, table
from ladi.report.tables import duration, plain

MAX_TIME_ROWS = 12
"""Rows of a denoising table; with more times, evenly spaced ones are shown."""
OPEN_QUESTIONS = 2
"""Denoising tables that are unfolded when the page opens."""


def summary_section(evaluations: Sequence[Evaluation], index_of: dict[str, int]) -> Section | None:
    if not evaluations:
        return None
    settings = [name for name in SETTINGS if name != "num_steps"]
    varied = [name for name in settings if len({getattr(e, name) for e in evaluations} - {None}) > 1]
    titles = ["model", "task", "questions &times;&nbsp;samples", "pass@1 (%)", "pass@k (%), largest&nbsp;k"]
    titles += ["distinct", "steps", *(name.replace("_", " ") for name in varied), "wall time"]
    rows = []
    for e in evaluations:
        k = max(e.pass_at)
        row = [f"{chip(index_of[e.label])}{html.escape(e.label)}", html.escape(f"{e.task}, {e.split}")]
        row += [f"{e.num_questions}&nbsp;&times;&nbsp;{e.num_samples}", interval(e.pass_at.get(1), 100.0, 1)]
        row += [interval(e.pass_at[k], 100.0, 1, f"k={k}") if k > 1 else "&ndash;"]
        row += [interval(e.distinct_valid, 1.0, 2), setting(e.num_steps)]
        row += [setting(getattr(e, name)) for name in varied]
        rows.append([*row, duration(e.wall_s).replace(" ", "&nbsp;")])
    lead = (
        "Compare pass@1 (one try) with pass@k (any of k tries): a model that keeps many ways of solving "
        "gains more with k. Small print is the confidence interval; <em>distinct</em> counts different valid "
        "solutions per question."
    )
    return Section("summary", "Summary", lead, table(titles, rows, "numbers"))


def setting(value: object) -> str:
    return "&ndash;" if value is None else html.escape(plain(value))


def per_task_figures(
    evaluations: Sequence[Evaluation],
    index_of: dict[str, int],
    draw: Callable[[Sequence[Evaluation], dict[str, int], str], str],
    plot_id: str,
) -> str:
    figures = [
        figure(draw(group, index_of, f"{plot_id}{number}"), html.escape(task))
        for number, (task, group) in enumerate(by_task(evaluations).items())
    ]
    return f"<div class='plots'>{''.join(figures)}</div>"


def pass_section(evaluations: Sequence[Evaluation], index_of: dict[str, int]) -> Section | None:
    shown = curves(evaluations)
    if not shown:
        return None
    lead = (
        "Look at the slope: a curve that is still rising at the right has solutions it rarely finds first. "
        "Bands are intervals; seeds are averaged, and of evaluations that share a label the one with most samples is "
        "shown."
    )
    body = legend(shown, index_of) + per_task_figures(shown, index_of, plots.pass_at_k, "pass")
    return Section("pass", "pass@k", lead, body)


def distinct_section(evaluations: Sequence[Evaluation], index_of: dict[str, int]) -> Section | None:
    shown = [evaluation for evaluation in main_evaluations(evaluations) if evaluation.distinct_valid is not None]
    if not shown:
        return None
    lead = "Longer is more diverse: only valid solutions count, and each of them once; lines are intervals."
    if len(samples := {evaluation.num_samples for evaluation in shown}) > 1:
        numbers = ", ".join(map(str, sorted(samples)))
        lead += f" The count grows with the number of samples, which differs here ({numbers})."
    body = per_task_figures(shown, index_of, plots.distinct_bars, "distinct")
    return Section("distinct", "Distinct valid solutions", lead, body)


def sweep_section(evaluations: Sequence[Evaluation], index_of: dict[str, int]) -> Section | None:
    axes = {
        "num_steps": "denoising steps",
        "guidance": "guidance strength",
        "guidance_scale": "classifier-free guidance scale",
        "initial_noise": "scale of the initial noise",
        "temperature": "temperature of the text",
    }
    figures, shown, last = [], [], ""
    for name, xlabel in axes.items():
        for number, (task, members) in enumerate(by_task(evaluations).items()):
            groups = sweeps(members, name)
            if groups:
                svg = plots.sweep(groups, name, xlabel, index_of, f"{name}{number}")
                figures.append(figure(svg, f"{html.escape(xlabel.capitalize())}: {html.escape(task)}"))
                shown += [evaluation for group in groups for evaluation in group]
    for number, (task, members) in enumerate(by_task(evaluations).items()):
        if groups := widened(members):
            drawn = plots.coverage(groups, index_of, f"coverage{number}")
            figures.append(figure(drawn, f"Ever wider sampling: {html.escape(task)}"))
            shown += [evaluation for _, group in groups for evaluation in group]
            last = (
                " The last plot sets the two against each other; numbers at the points are the noise or the "
                "temperature, and of two models the one whose line lies further up and to the right has the better "
                "choice of both."
            )
    if not figures:
        return None
    lead = (
        "Each line changes one sampler setting and nothing else: look for where more denoising steps stop "
        "helping, and for what guidance, noise or temperature costs at one try (solid) and buys over many (dashed)."
        + last
    )
    body = f"{legend(shown, index_of)}<div class='plots'>{''.join(figures)}</div>"
    return Section("sweeps", "Sampler settings", lead, body)


def latent_section(evaluations: Sequence[Evaluation], index_of: dict[str, int]) -> Section | None:
    shown = [evaluation for evaluation in main_evaluations(evaluations) if evaluation.latent_use]
    if not shown:
        return None
    lead = (
        "If the text decoder really reads the latents, accuracy falls when they are zeroed, swapped between "
        "questions or replaced by noise; bars of equal height would mean that it ignores them."
    )
    body = legend(shown, index_of) + per_task_figures(shown, index_of, plots.latent_use, "latent")
    return Section("latents", "Are the latents used?", lead, body)


def loss_section(runs: Sequence[Run]) -> Section | None:
    parts = []
    for number, run in enumerate(runs):
        losses = {key: points for key, points in run.metrics.items() if key.startswith("loss/")}
        figures = [
            figure(
                plots.loss_curve(points, run.metrics.get(f"validation/{key}", ()), key, f"loss{number}-{i}"),
                f"<code>{html.escape(key)}</code>",
            )
            for i, (key, points) in enumerate(losses.items())
        ]
        if figures:
            parts.append(f"<h3>{html.escape(run.name)}</h3><div class='plots small'>{''.join(figures)}</div>")
    lead = (
        "Faint lines are the logged values, strong lines their running mean (log axis if all are positive): "
        "look for curves that are still falling at the end, or that jump. Dots are held-out problems, where a run "
        "has them (<code>--validation.every</code>): where they rise, the training set is being learned by heart."
    )
    return Section("losses", "Training losses", lead, "".join(parts)) if parts else None


def reconstruction_section(runs: Sequence[Run]) -> Section | None:
    shown = {run.name: run.reconstruction for run in runs if run.reconstruction}
    if not shown:
        return None
    lead = (
        "Held-out blocks that a VAE gives back to the letter from the mean of their latents: without noise it should "
        "be 99 % or more. Where the curve falls says how exactly a reasoner must denoise."
    )
    items = "".join(f"<li>{chip(i)}{html.escape(name)}</li>" for i, name in enumerate(shown))
    plot = figure(plots.reconstruction(dict(enumerate(shown.values())), "vae"), "exactness against noise")
    body = f"<ul class='legend'>{items}</ul><div class='plots'>{plot}</div>"
    return Section("reconstruction", "What the VAE gives back", lead, body)


RL_METRICS = {
    "reward/mean": "mean reward",
    "rollout/pass@1": "pass@1 of the rollouts",
    "rollout/pass@group": "solved by any text of the group",
    "rollout/distinct_correct": "distinct correct answers of a group",
    "reward/between_latent_var": "reward variance between latents",
    "reward/within_latent_var": "reward variance within a latent",
    "reward/zero_variance_share": "questions without contrast",
    "text/entropy": "text entropy (nats per token)",
    "latent/spread": "latent spread in a group",
    "latent/transition_entropy": "transition entropy (nats per number)",
    "text/clip_fraction": "clip fraction, texts",
    "latent/clip_fraction": "clip fraction, latents",
    "text/ratio_max": "largest ratio, texts",
    "latent/ratio_max": "largest ratio, latents",
    "loss/contrastive": "contrastive loss",
    "filter/value_correlation": "value head's correlation with the reward",
    "main/tokens": "positions the main model processed in the rollout",
    "main/replay_tokens": "positions the main model processed in replays",
    "main/decoded_share": "main-model forwards, as a share of decoding all trajectories",
    "optim/grad_norm": "gradient norm",
    "time/step_s": "seconds per update",
    "time/samples_per_s": "sampled texts per second",
}


def rl_section(runs: Sequence[Run], evaluations: Sequence[Evaluation], index_of: dict[str, int]) -> Section | None:
    shown = run_colors([run for run in runs if "reward/mean" in run.metrics], evaluations, index_of)
    if not shown:
        return None
    figures = []
    for number, (key, caption) in enumerate(RL_METRICS.items()):
        curves = {i: run.metrics[key] for i, run in shown.items() if run.metrics.get(key)}
        if curves:
            figures.append(figure(plots.metric_curves(curves, key, f"rl{number}"), html.escape(caption)))
    lead = (
        "Reward should rise while distinct answers hold: a collapse shows as falling text entropy, latent spread or "
        "distinct answers (the transition entropy is the noise's and cannot show it). If the variance between latents "
        "goes to 0, the latents no longer decide the answer. In the first plot, a run that goes right without going "
        "down gains accuracy without losing diversity."
    )
    items = "".join(f"<li>{chip(i)}{html.escape(run.name)}</li>" for i, run in shown.items())
    body = f"<ul class='legend'>{items}</ul>{trade_off(shown)}<div class='plots small'>{''.join(figures)}</div>"
    return Section("rl", "Reinforcement learning", lead, body)


METHODS = {
    "LaDi-RL": (
        ("num_latents", "texts_per_latent"),
        "the velocity of thought latents and the text head, by policy gradient through the sampler's noise",
        "to raise pass@1 while keeping many ways of solving",
    ),
    "DLR": (
        ("num_decoded",),
        "an assistant's latent policy and its projection; the main model stays frozen",
        "to improve a large model without touching it",
    ),
    "token GRPO": (("num_generations",), "the token model", "to raise pass@1 only"),
}
"""Method -> settings of its policy whose product is the texts of a question, what it trains, and when to choose it.
DLR's policy has the settings of GRPO's too, so it comes first."""


def method(run: Run) -> str | None:
    """The reinforcement learning that a run's settings describe, and None for other stages."""
    policy = run.config.get("policy", {})
    return next((name for name, (sizes, *_) in METHODS.items() if policy.keys() >= set(sizes)), None)


def methods_section(runs: Sequence[Run]) -> Section | None:
    """What each method of reinforcement learning among the runs trains and costs, and when to choose it."""
    rows = []
    for run in runs:
        name = method(run)
        if name is None or not run.metrics.get("time/step_s"):
            continue
        sizes, trains, choose = METHODS[name]
        texts = run.config["loop"]["batch_size"] * math.prod(run.config["policy"][size] for size in sizes)
        if name == "DLR" and run.config.get("train_main"):
            trains = "an assistant's latent policy, its projection, and the main model"
        seconds, passes = (mean_of(run, key) for key in ("time/step_s", "main/forwards"))
        cost = [f"{texts} texts", f"{seconds:.2g}&nbsp;s"]
        cost += [f"{passes:,.0f} passes of the main model"] if passes is not None else []
        rows.append([html.escape(run.name), name, trains, ", ".join(cost), choose])
    lead = "Costs are means over the run's updates, sampling and judging included."
    titles = ["run", "method", "trains", "an update costs", "choose it"]
    return Section("methods", "What was trained, and what it cost", lead, table(titles, rows, "text")) if rows else None


def mean_of(run: Run, key: str) -> float | None:
    """A metric's mean over the run; None where it is not logged."""
    values = [value for _, value in run.metrics.get(key, [])]
    return sum(values) / len(values) if values else None


def run_colors(runs: Sequence[Run], evaluations: Sequence[Evaluation], index_of: dict[str, int]) -> dict[int, Run]:
    """Each run under the colour of the label that its model was evaluated with, or else under one of its own."""
    colors: dict[int, Run] = {}
    free = len(index_of)
    for run in runs:
        folder = run.run_dir.resolve()
        inside = (e for e in evaluations if e.model_dir and e.model_dir.resolve().is_relative_to(folder))
        color = next((index_of[e.label] for e in inside), None)
        if color is None or color in colors:
            color, free = free, free + 1
        colors[color] = run
    return colors


def trade_off(runs: dict[int, Run]) -> str:
    """Distinct correct answers against pass@1 of the rollouts over training; empty where a run logs neither."""
    paths = {}
    for i, run in runs.items():
        accuracy, distinct = (dict(run.metrics.get(key, [])) for key in ("rollout/pass@1", "rollout/distinct_correct"))
        steps = sorted(accuracy.keys() & distinct.keys())
        if steps:
            paths[i] = [(100 * accuracy[step], distinct[step]) for step in steps]
    if not paths:
        return ""
    labels = ("pass@1 of the rollouts (%)", "distinct correct answers of a group")
    drawn = plots.metric_paths(paths, labels, "rlpath")
    return f"<div class='plots'>{figure(drawn, 'Accuracy against diversity, start (hollow) to end')}</div>"


def pca_section(runs: Sequence[Run]) -> Section | None:
    figures = [
        figure(plots.pca_paths(run.denoising.pca, f"pca{number}"), pca_caption(run))
        for number, run in enumerate(runs)
        if run.denoising is not None and run.denoising.pca is not None
    ]
    lead = (
        "Each line is one sample from noise (hollow) to its final latents "
        f"(<span style='color:{plots.css_color(plots.GOOD)}'>&#9679; correct</span>, "
        f"<span style='color:{plots.css_color(plots.BAD)}'>&#10006; wrong</span>): "
        "separate end points are separate ways of answering the same question."
    )
    body = f"<div class='plots'>{''.join(figures)}</div>"
    return Section("pca", "Latents of one question", lead, body) if figures else None


def pca_caption(run: Run) -> str:
    assert run.denoising is not None
    assert run.denoising.pca is not None
    correct = run.denoising.pca.correct
    question = html.escape(run.denoising.pca.question)
    return f"<code>{question}</code> &middot; {html.escape(run.name)}, {sum(correct)} of {len(correct)} correct"


def denoising_section(runs: Sequence[Run]) -> Section | None:
    parts = []
    for run in runs:
        questions = run.denoising.questions if run.denoising is not None else []
        if questions:
            tables = [denoising_table(q, unfolded=i < OPEN_QUESTIONS) for i, q in enumerate(questions)]
            parts.append(f"<h3>{html.escape(run.name)}</h3>{''.join(tables)}")
    lead = (
        "What the blocks decode to on the way from noise (t = 1) to data (t = 0); <mark>marked</mark> text "
        "changed since the row above: look at which parts settle first, and whether later steps repair them."
    )
    return Section("denoising", "Puzzles being denoised", lead, "".join(parts)) if parts else None


def denoising_table(question: Question, unfolded: bool) -> str:
    rows, previous = [], None
    chosen = spaced(len(question.times), MAX_TIME_ROWS)
    for i in chosen:
        blocks = question.texts[i]
        before = blocks if previous is None else previous
        marked = [mark_changes(before[j] if j < len(before) else "", block) for j, block in enumerate(blocks)]
        rows.append([f"{question.times[i]:.2f}", *marked])
        previous = blocks
    num_blocks = max((len(row) - 1 for row in rows), default=0)
    titles = ["t", *(f"block {j + 1}" for j in range(num_blocks))]
    skipped = len(question.times) - len(chosen)
    note = f"<p class='note'>{skipped} of {len(question.times)} times are not shown.</p>" if skipped else ""
    verdict = "correct" if question.correct else "wrong"
    answer = f"<p>Answer: {code(question.answer)} <b class='{verdict}'>{verdict}</b></p>"
    opening = f"<details{' open' if unfolded else ''}><summary>{code(question.question)}</summary>"
    return f"{opening}{table(titles, rows, 'text')}{note}{answer}</details>"


def spaced(total: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced positions out of `total`, first and last among them."""
    if total <= limit:
        return list(range(total))
    return [round(i * (total - 1) / (limit - 1)) for i in range(limit)]


def mark_changes(before: str, after: str) -> str:
    """`after` as HTML, with the characters that are not in `before` marked."""
    parts = []
    for tag, _, _, start, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        piece = html.escape(after[start:end])
        parts.append(piece if tag == "equal" or not piece else f"<mark>{piece}</mark>")
    return "".join(parts)


def provenance_section(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> Section | None:
    parts = []
    if evaluations:
        rows = [
            [html.escape(e.label), html.escape(e.path.stem), html.escape(plain(e.seed)), code(e.commit),
             html.escape(plain(e.machine)), code(e.command)]
            for e in evaluations
        ]  # fmt: skip
        parts.append(table(["evaluation", "file", "seed", "commit", "machine", "command"], rows, "provenance"))
    for run in runs:
        if run.provenance:
            rows = [[html.escape(key), provenance_value(value)] for key, value in run.provenance.items()]
            parts.append(f"<h3>{html.escape(run.name)}</h3>{table(['provenance', ''], rows, 'provenance')}")
        if run.config:
            summary = f"<summary>Configuration of {html.escape(run.name)}</summary>"
            config = html.escape(json.dumps(run.config, indent=2, ensure_ascii=False))
            parts.append(f"<details>{summary}<pre>{config}</pre></details>")
    lead = "Where every number comes from: to repeat one, check out its commit and run its command."
    return Section("provenance", "Provenance", lead, "".join(parts)) if parts else None


def provenance_value(value: object) -> str:
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
