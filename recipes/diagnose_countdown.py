"""Where Countdown answers go wrong: the steps' arithmetic, the plan, or what follows a good plan.

    python recipes/diagnose_countdown.py 3 "AR SFT=assets/cd3_tiny/ar" "LaDiR=assets/cd3_tiny/stage1"

Samples 200 test puzzles of so many inputs x 20 texts of each model (token-level at temperature 1, latents at 10
denoising steps) and puts the shares into docs/results.md.
"""

import sys
from collections import defaultdict
from pathlib import Path

from ladi.bundled import resolve
from ladi.draws import Streams
from ladi.inference.models import load_model, sample_ar
from ladi.models.backbone import Backbone
from ladi.models.generation import SampleConfig, generate
from ladi.report import numbers_table, update_markdown
from ladi.rundir import provenance
from ladi.tasks.countdown import STEP, Countdown, apply, solve, verify

QUESTIONS, SAMPLES, CHUNK, MAX_TEXT = 200, 20, 50, 64
NAMES = ("first", "second", "third")


def after(numbers: list[int], step: str) -> list[int] | None:
    """The numbers left after a step, None if it is wrong."""
    match = STEP.match(step)
    if match is None:
        return None
    a, sign, b, claimed = int(match[1]), match[2], int(match[3]), int(match[4])
    left = list(numbers)
    for used in (a, b):
        if used not in left:
            return None
        left.remove(used)
    return [*left, claimed] if apply(a, sign, b) == claimed else None


def texts(path: str, questions: list[str]) -> list[list[str]]:
    """`SAMPLES` texts of every question."""
    model, rows = load_model(resolve(Path(path))), []
    for first in range(0, len(questions), CHUNK):
        some = questions[first : first + CHUNK]
        source = Streams.of(0, range(first, first + len(some)))
        if isinstance(model, Backbone):
            rows += sample_ar(model, some, SAMPLES, MAX_TEXT, 1.0, source)[0]
        else:
            rows += generate(model, some, SAMPLES, SampleConfig(num_steps=10), source).texts
    return rows


def shares(path: str, size: int) -> dict[str, float]:
    """Percentages, each of those that passed the one before; the last of all."""
    task = Countdown(size=size, max_input=50)
    problems = [task.problem("test", i) for i in range(QUESTIONS)]
    passed: dict[str, int] = defaultdict(int)
    for problem, row in zip(problems, texts(path, [p.question for p in problems]), strict=True):
        numbers, target = list(problem.meta["numbers"]), problem.meta["target"]
        for text in row:
            left: list[int] | None = numbers
            for name, step in zip(NAMES[: size - 2], text.split(","), strict=False):
                left = after(left, step)
                if left is None:
                    break
                passed[f"{name} step valid"] += 1
                if not solve(left, target):
                    break
                passed[f"target in reach after the {name}"] += 1
            else:
                passed["correct"] += verify(numbers, target, text).correct
    result, before = {}, QUESTIONS * SAMPLES
    for name, count in passed.items():
        result[f"{name} (%)" if not result else f"of these, {name} (%)"] = 100 * count / before
        before = count
    return result | {"correct (%)": 100 * passed["correct"] / (QUESTIONS * SAMPLES)}


if __name__ == "__main__":
    size, models = int(sys.argv[1]), sys.argv[2:]
    found = {label: shares(path, size) for label, path in (argument.split("=", 1) for argument in models)}
    command = {"command": f"python recipes/diagnose_countdown.py {size} " + " ".join(f'"{a}"' for a in models)}
    table = numbers_table(found, {**provenance(), **command})
    update_markdown(Path(__file__).parents[1] / "docs" / "results.md", f"cd{size}_diagnosis", table)
    print(table)
