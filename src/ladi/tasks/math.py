r"""MATH (Hendrycks et al. 2021) and MATH-500 (Lightman et al. 2023): competition problems in LaTeX.

question   What is the positive difference between $120\%$ of 30 and $130\%$ of 20?
steps      One hundred twenty percent of 30 is $36$, and $130\%$ of 20 is $26$. | The difference is $\boxed{10}$.
answer     10
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ladi.tasks.answers import marked_answer, verify_answers
from ladi.tasks.base import Problem, Published, Verdict
from ladi.tasks.blocks import split_cot
from ladi.tasks.published import check_texts, published_rows

FIGURE = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
"""Drawing code, which says nothing of the thought."""
PARAGRAPH_END = re.compile(r"\n\s*\n")


def solution_steps(solution: str) -> tuple[str, ...]:
    """The sentences of a solution without its figures; lines within a paragraph are one text, as in LaTeX."""
    paragraphs = PARAGRAPH_END.split(FIGURE.sub(" ", solution))
    return tuple(step for text in paragraphs for step in split_cot(" ".join(text.split()), "sentence"))


def parse(row: Mapping[str, Any], where: str) -> Problem:
    """A problem from the published fields; where `answer` is missing it is what the solution boxes.

    Raises:
        ValueError: if a field is missing; says where.
    """
    check_texts(row, ("problem", "solution"), where)
    answer = row.get("answer") or marked_answer(row["solution"])
    if not answer:
        raise ValueError(f"{where}: there is no 'answer', and the solution boxes none")
    check_texts({"answer": answer}, ("answer",), where)
    meta = {
        "subject": row.get("subject") or row.get("type", ""),
        "level": int(re.sub(r"\D", "", str(row.get("level", ""))) or 0),
        "unique_id": row.get("unique_id", ""),
    }
    question = row["problem"].strip()
    return Problem(question=question, steps=solution_steps(row["solution"]), answer=answer.strip(), meta=meta)


@lru_cache
def read(source: str, split: str) -> tuple[Problem, ...]:
    """All problems of a JSONL file, or of a split of a hub data set.

    Raises:
        ValueError: if they cannot be read.
    """
    return tuple(parse(row, where) for where, row in published_rows(source, split))


@dataclass(frozen=True, kw_only=True)
class Math(Published):
    """The task `math`: trained on MATH, tested on MATH-500."""

    train_path: str = "EleutherAI/hendrycks_math"
    """Hub name or JSONL file of the split `train`: problem, solution, and if there are answer, subject, level,
    unique_id."""
    test_path: str = "HuggingFaceH4/MATH-500"
    """The same for the split `test`."""

    name = "math"
    step_separator = "\n"
    cot_in_answer = False
    needs_mark = True

    def read(self, split: str) -> tuple[Problem, ...]:
        """All problems of a split."""
        return read(self.train_path if split == "train" else self.test_path, split)

    def verify_many(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Correct where the marked answer of a text equals the published one."""
        return verify_answers([problem.answer for problem in problems], texts)
