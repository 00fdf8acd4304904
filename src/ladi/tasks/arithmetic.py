"""Arithmetic chains: add and subtract multi-digit numbers from left to right; easier than Countdown, no search.

question   37+45-12=
steps      37+45=82 | 82-12=70
answer     70
"""

from dataclasses import dataclass

from ladi.tasks.base import Problem, Verdict, index_random, stable_uniform

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """The task `arithmetic`."""

    max_steps: int = 4
    """Chains have 2 to max_steps operations."""
    max_operand: int = 99
    reserved: float = 0.05
    """Share of questions kept out of training, half for validation and half for test."""
    seed: int = 0

    def __post_init__(self):
        if self.max_steps < 2:
            raise ValueError(f"max_steps must be at least 2, got {self.max_steps}")
        if self.max_operand < 9:
            raise ValueError(f"max_operand must be at least 9, got {self.max_operand}")
        if not 0 < self.reserved < 1:
            raise ValueError(f"reserved is a share between 0 and 1, got {self.reserved}")

    name = "arithmetic"
    alphabet = "0123456789+-="
    step_separator = ","
    cot_in_answer = False
    needs_mark = False
    splits = SPLITS

    def num_problems(self, split: str) -> None:
        """None: every split is endless."""

    def problem(self, split: str, index: int) -> Problem:
        """Chain `index` of a split; intermediates are never negative.

        Raises:
            ValueError: if the split is unknown.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; arithmetic has {', '.join(SPLITS)}")
        rng = index_random("arithmetic", self.max_steps, self.max_operand, self.seed, split, index)
        while True:
            value = rng.randint(1, self.max_operand)
            question, steps = str(value), []
            for _ in range(rng.randint(2, self.max_steps)):
                operand = rng.randint(1, self.max_operand)
                op = "-" if operand <= value and rng.random() < 0.5 else "+"
                result = value - operand if op == "-" else value + operand
                question += f"{op}{operand}"
                steps.append(f"{value}{op}{operand}={result}")
                value = result
            u = stable_uniform("chain", question)
            found = "train" if u >= self.reserved else "validation" if u < self.reserved / 2 else "test"
            if found == split:
                return Problem(question=question + "=", steps=tuple(steps), answer=str(value), meta={"value": value})

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Correct if the text is the answer, to the character."""
        if text == problem.answer:
            return Verdict(correct=True, reason="ok", canonical=text)
        return Verdict(correct=False, reason="wrong answer")
