"""GSM8K (Cobbe et al. 2021): grade-school word problems, from the hub or from a local copy.

question   Natalia sold clips to 48 of her friends in April, and then half as many in May. How many in all?
steps      In May, Natalia sold 48/2 = 24 clips. | Altogether she sold 48+24 = 72 clips.
answer     72
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ladi.tasks.answers import verify_answers
from ladi.tasks.base import Problem, Published, Verdict
from ladi.tasks.published import check_texts, published_rows

MARK = re.compile(r"<<[^<>]*>>")


def parse(row: Mapping[str, Any], where: str, keep_marks: bool) -> Problem:
    """A problem from the published fields: one line a step, the answer after ####.

    Raises:
        ValueError: if a field is missing, or the solution names no answer; says where.
    """
    check_texts(row, ("question", "answer"), where)
    cot, mark, answer = row["answer"].rpartition("####")
    if not mark or not answer.strip():
        raise ValueError(
            f"{where}: 'answer' must end in #### and the final answer, got ...{row['answer'][-40:]!r}; add it, or "
            "leave the row out"
        )
    lines = (cot if keep_marks else MARK.sub("", cot)).splitlines()
    steps = tuple(line.strip() for line in lines if line.strip())
    return Problem(question=row["question"].strip(), steps=steps, answer=answer.strip().replace(",", ""))


@lru_cache
def read(path: str, split: str, keep_marks: bool) -> tuple[Problem, ...]:
    """All problems of a split: of `gsm8k_<split>.jsonl` in the folder `path`, else of the hub data set of that name.

    Raises:
        ValueError: if the folder has no such file, a row is malformed, or the hub cannot be reached.
    """
    source = str(Path(path) / f"gsm8k_{split}.jsonl") if Path(path).is_dir() else path
    return tuple(parse(row, where, keep_marks) for where, row in published_rows(source, split, ("main",)))


@dataclass(frozen=True, kw_only=True)
class Gsm8k(Published):
    """The task `gsm8k`; its published splits are `train` and `test`."""

    path: str = "openai/gsm8k"
    """Hub name, or a folder with gsm8k_train.jsonl and gsm8k_test.jsonl."""
    keep_marks: bool = False
    """Keep the calculator marks `<<48/2=24>>` in the steps."""

    name = "gsm8k"
    step_separator = "\n"
    cot_in_answer = False
    needs_mark = True

    def read(self, split: str) -> tuple[Problem, ...]:
        """All problems of a split."""
        return read(self.path, split, self.keep_marks)

    def verify_many(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Correct where the marked answer of a text equals the published one."""
        return verify_answers([problem.answer for problem in problems], texts)
