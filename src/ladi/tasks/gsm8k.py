"""GSM8K (Cobbe et al. 2021): grade-school word problems, from the hub or from a local copy.

question   Natalia sold clips to 48 of her friends in April, and then half as many in May. How many in all?
steps      In May, Natalia sold 48/2 = 24 clips. | Altogether she sold 48+24 = 72 clips.
answer     72
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets

from ladi.tasks.answers import extract_answer, same_answer
from ladi.tasks.base import Problem, Verdict

MARK = re.compile(r"<<[^<>]*>>")


def parse(question: str, solution: str) -> Problem:
    """A problem from the published fields: calculator marks removed, one line a step, the answer after ####."""
    cot, _, answer = solution.rpartition("####")
    steps = tuple(line.strip() for line in MARK.sub("", cot).splitlines() if line.strip())
    return Problem(question=question.strip(), steps=steps, answer=answer.strip().replace(",", ""))


@lru_cache
def read(path: str, split: str) -> tuple[Problem, ...]:
    """All problems of a split: of `gsm8k_<split>.jsonl` in the folder `path`, else of the hub data set of that name.

    Raises:
        ValueError: if a local folder has no such file.
    """
    if not Path(path).is_dir():
        published: Any = datasets.load_dataset(path, "main", split=split)
        return tuple(parse(row["question"], row["answer"]) for row in published)
    file = Path(path) / f"gsm8k_{split}.jsonl"
    if not file.is_file():
        raise ValueError(f"no file {file}; the folder must hold gsm8k_train.jsonl and gsm8k_test.jsonl")
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(parse(row["question"], row["answer"]) for row in rows)


@dataclass(frozen=True, kw_only=True)
class Gsm8k:
    """The task `gsm8k`; its published splits are `train` and `test`."""

    path: str = "openai/gsm8k"
    """Hub name, or a folder with gsm8k_train.jsonl and gsm8k_test.jsonl."""

    name = "gsm8k"
    step_separator = "\n"
    cot_in_answer = False
    splits = ("train", "test")

    @property
    def alphabet(self) -> str:
        """Every character of the training texts."""
        return "".join(
            sorted({c for p in read(self.path, "train") for t in (p.question, *p.steps, p.answer) for c in t})
        )

    def num_problems(self, split: str) -> int:
        """Problems of a split."""
        return len(read(self.path, split))

    def problem(self, split: str, index: int) -> Problem:
        """Problem `index` of a split.

        Raises:
            ValueError: if the split is unknown or has no such problem.
        """
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}; gsm8k has train and test")
        rows = read(self.path, split)
        if not 0 <= index < len(rows):
            raise ValueError(f"gsm8k has {len(rows)} {split} problems, so no problem {index}; ask for fewer questions")
        return rows[index]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Correct if the final answer in the text equals the published one."""
        if same_answer(extract_answer(text), problem.answer):
            return Verdict(correct=True, reason="ok", canonical=problem.answer)
        return Verdict(correct=False, reason="wrong answer")
