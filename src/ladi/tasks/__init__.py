"""Tasks: what is asked and how an answer is judged. No torch here."""

from collections.abc import Sequence

from ladi.tasks.arithmetic import Arithmetic
from ladi.tasks.base import Problem, Verdict
from ladi.tasks.code import Code
from ladi.tasks.countdown import Countdown
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.gym import Gym
from ladi.tasks.jsonl import Jsonl
from ladi.tasks.math import Math

TaskConfig = Countdown | Arithmetic | Jsonl | Gsm8k | Math | Code | Gym


def verify_all(task: TaskConfig, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
    """The verdict on one text per problem; all at once where the task judges many texts in parallel."""
    verify_many = getattr(task, "verify_many", None)
    if verify_many is not None:
        return verify_many(problems, texts)
    return [task.verify(problem, text) for problem, text in zip(problems, texts, strict=True)]
