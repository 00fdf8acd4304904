"""GSM8K (Cobbe et al. 2021): grade-school word problems, from the hub or from a local copy.

question   Natalia sold clips to 48 of her friends in April, and then half as many in May. How many in all?
steps      In May, Natalia sold 48/2 = 24 clips. | Altogether she sold 48+24 = 72 clips.
answer     72
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ladi.tasks.answers import verify_answers
from ladi.tasks.base import Problem, Verdict, characters, pick
from ladi.tasks.published import published_rows

MARK = re.compile(r"<<[^<>]*>>")


def parse(question: str, solution: str, keep_marks: bool) -> Problem:
    """A problem from the published fields: one line a step, the answer after ####."""
    cot, _, answer = solution.rpartition("####")
    lines = (cot if keep_marks else MARK.sub("", cot)).splitlines()
    steps = tuple(line.strip() for line in lines if line.strip())
    return Problem(question=question.strip(), steps=steps, answer=answer.strip().replace(",", ""))


@lru_cache
def read(path: str, split: str, keep_marks: bool) -> tuple[Problem, ...]:
    """All problems of a split: of `gsm8k_<split>.jsonl` in the folder `path`, else of the hub data set of that name.

    Raises:
        ValueError: if the folder has no such file, or the hub cannot be reached.
    """
    source = str(Path(path) / f"gsm8k_{split}.jsonl") if Path(path).is_dir() else path
    rows = published_rows(source, split, ("main",))
    return tuple(parse(row["question"], row["answer"], keep_marks) for row in rows)


@dataclass(frozen=True, kw_only=True)
class Gsm8k:
    """The task `gsm8k`; its published splits are `train` and `test`."""

    path: str = "openai/gsm8k"
    """Hub name, or a folder with gsm8k_train.jsonl and gsm8k_test.jsonl."""
    keep_marks: bool = False
    """Keep the calculator marks `<<48/2=24>>` in the steps."""

    name = "gsm8k"
    step_separator = "\n"
    cot_in_answer = False
    needs_mark = True
    splits = ("train", "test")

    def problems(self, split: str) -> tuple[Problem, ...]:
        """All problems of a split.

        Raises:
            ValueError: if the split is unknown, or cannot be read.
        """
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}; gsm8k has train and test")
        return read(self.path, split, self.keep_marks)

    @property
    def alphabet(self) -> str:
        """Every character of the training texts."""
        return characters(self.problems("train"))

    def num_problems(self, split: str) -> int:
        """Problems of a split."""
        return len(self.problems(split))

    def problem(self, split: str, index: int) -> Problem:
        """Problem `index` of a split.

        Raises:
            ValueError: if the split is unknown or has no such problem.
        """
        return pick(self.problems(split), index, f"gsm8k {split}")

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Correct if the marked answer of the text equals the published one."""
        return self.verify_many([problem], [text])[0]

    def verify_many(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """The verdict on each text for its problem."""
        return verify_answers([problem.answer for problem in problems], texts)
