"""Where Countdown-3 answers go wrong: the first step's arithmetic, the plan, or what follows a good first step.

    python recipes/diagnose_countdown3.py "AR SFT=assets/cd3_tiny/ar" "LaDiR=assets/cd3_tiny/stage1"

Samples 200 test puzzles x 20 texts of each model (token-level at temperature 1, latents at 10 denoising steps) and puts
the shares into docs/results.md.
"""

import re
import sys
from pathlib import Path

from ladi.bundled import resolve
from ladi.draws import Streams
from ladi.inference.models import load_model, sample_ar
from ladi.models.backbone import Backbone
from ladi.models.generation import SampleConfig, generate
from ladi.report import numbers_table, update_markdown
from ladi.rundir import provenance
from ladi.tasks.countdown import Countdown, verify

TASK = Countdown(size=3, max_input=50)
PROBLEMS = [TASK.problem("test", i) for i in range(200)]
SAMPLES, CHUNK = 20, 50
STEP = re.compile(r"([0-9]+)([-+*/])([0-9]+)=([0-9]+)")


def result(a: int, sign: str, b: int) -> int | None:
    """The value of a step, None where the rules allow none."""
    if sign == "/":
        return a // b if b and a % b == 0 else None
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return value if value > 0 else None


def after_first_step(numbers: list[int], text: str) -> list[int] | None:
    """The two numbers left after the text's first step, None if that step is wrong."""
    match = STEP.match(text)
    if match is None:
        return None
    a, sign, b, claimed = int(match[1]), match[2], int(match[3]), int(match[4])
    left = list(numbers)
    for used in (a, b):
        if used not in left:
            return None
        left.remove(used)
    return [*left, claimed] if result(a, sign, b) == claimed else None


def reaches(left: list[int], target: int) -> bool:
    """Whether one more step makes the target."""
    return any(result(x, sign, y) == target for x, y in (left, left[::-1]) for sign in "+-*/")


def texts(path: str) -> list[list[str]]:
    model, rows = load_model(resolve(Path(path))), []
    for first in range(0, len(PROBLEMS), CHUNK):
        questions = [p.question for p in PROBLEMS[first : first + CHUNK]]
        source = Streams.of(0, range(first, first + CHUNK))
        if isinstance(model, Backbone):
            rows += sample_ar(model, questions, SAMPLES, 64, 1.0, source)[0]
        else:
            rows += generate(model, questions, SAMPLES, SampleConfig(num_steps=10), source).texts
    return rows


def shares(path: str) -> dict[str, float]:
    """Percentages, each of those that passed the one before; the last of all."""
    total = valid = planned = finished = 0
    for problem, row in zip(PROBLEMS, texts(path), strict=True):
        numbers, target = list(problem.meta["numbers"]), problem.meta["target"]
        for text in row:
            total += 1
            left = after_first_step(numbers, text)
            if left is None:
                continue
            valid += 1
            if reaches(left, target):
                planned += 1
                finished += verify(numbers, target, text).correct
    return {
        "first step valid (%)": 100 * valid / total,
        "of these, target in reach (%)": 100 * planned / valid,
        "of these, correct (%)": 100 * finished / planned,
        "correct (%)": 100 * finished / total,
    }


if __name__ == "__main__":
    found = {label: shares(path) for label, path in (argument.split("=", 1) for argument in sys.argv[1:])}
    command = {"command": "python recipes/diagnose_countdown3.py " + " ".join(f'"{a}"' for a in sys.argv[1:])}
    table = numbers_table(found, {**provenance(), **command})
    update_markdown(Path(__file__).parents[1] / "docs" / "results.md", "cd3_diagnosis", table)
    print(table)
