"""Your own data: one JSON object per line.

{"question": "What is 2+3*4?", "steps": ["3*4=12", "2+12=14"], "answer": "14"}
{"question": "What is 2+3*4?", "cot": "3*4 is 12. Then 2+12 is 14.", "answer": "14"}

Answers are one line: white space in them counts as one space. Other columns are for reward functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ladi.tasks.answers import verify_answers
from ladi.tasks.base import Problem, Published, Verdict, characters, stable_uniform
from ladi.tasks.blocks import SplitBy, split_cot
from ladi.tasks.published import check_texts, is_text, json_object

SPLITS = ("train", "validation", "test")
OWN = ("question", "steps", "cot", "answer")
"""Columns that the task reads itself."""


def parse_row(line: bytes, where: str, split_by: SplitBy) -> Problem:
    """The problem of one line.

    Raises:
        ValueError: if the line is no JSON object with a question, an answer and either steps or cot, or the answer
            holds what marks answers; says where.
    """
    row = json_object(line, where)
    check_texts(row, ("question", "answer"), where)
    if ("steps" in row) == ("cot" in row):
        raise ValueError(f"{where}: need either 'steps' (a list of texts) or 'cot' (one text), got keys {sorted(row)}")
    if "steps" in row:
        steps = row["steps"]
        if not isinstance(steps, list) or not steps or not all(map(is_text, steps)):
            raise ValueError(f"{where}: 'steps' must be a list of texts that are not empty, got {steps!r}")
    else:
        check_texts(row, ("cot",), where)
        steps = split_cot(row["cot"], split_by)
    answer = " ".join(row["answer"].split())  # as answers are read from texts, in one line
    if "####" in answer or "<answer>" in answer:
        raise ValueError(f"{where}: 'answer' must be the answer alone, without #### or <answer>, got {answer!r:.80}")
    meta = {name: value for name, value in row.items() if name not in OWN}
    return Problem(question=row["question"], steps=tuple(steps), answer=answer, meta=meta)


@lru_cache
def read_rows(path: Path, split_by: SplitBy) -> tuple[Problem, ...]:
    """All problems of a file, read once per process; empty lines are skipped.

    Raises:
        ValueError: if the file is missing, empty, or has a malformed row.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; name a JSONL file of question, steps or cot, and answer")
    lines = path.read_bytes().split(b"\n")  # not splitlines: JSON texts may hold other line ends, such as U+2028
    rows = tuple(parse_row(line, f"{path}, line {i}", split_by) for i, line in enumerate(lines, 1) if line.strip())
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


@lru_cache
def split_rows(path: Path, split_by: SplitBy, reserved: float) -> dict[str, tuple[Problem, ...]]:
    """The rows of each split, by a stable hash of the question."""
    splits: dict[str, list[Problem]] = {name: [] for name in SPLITS}
    for problem in read_rows(path, split_by):
        u = stable_uniform("jsonl", problem.question)
        splits["train" if u >= reserved else "validation" if u < reserved / 2 else "test"].append(problem)
    return {name: tuple(rows) for name, rows in splits.items()}


@dataclass(frozen=True, kw_only=True)
class Jsonl(Published):
    """The task `jsonl`."""

    path: Path = Path("data.jsonl")
    split_by: SplitBy = "sentence"
    """How a `cot` is cut into blocks."""
    reserved: float = 0.1
    """Share of questions kept out of training, half for validation and half for test."""

    name = "jsonl"
    step_separator = "\n"
    cot_in_answer = False
    needs_mark = True

    def __post_init__(self):
        if not 0 < self.reserved < 1:
            raise ValueError(f"reserved is a share between 0 and 1, got {self.reserved}")

    @property
    def source(self) -> str:
        """The file."""
        return str(self.path)

    @property
    def splits(self) -> tuple[str, ...]:
        """Three, by a hash of the question."""
        return SPLITS

    @property
    def alphabet(self) -> str:
        """Every character of the file's texts."""
        return characters(read_rows(self.path, self.split_by))

    def read(self, split: str) -> tuple[Problem, ...]:
        """The rows of a split."""
        return split_rows(self.path, self.split_by, self.reserved)[split]

    def verify_many(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Correct where the marked answer of a text equals the row's."""
        return verify_answers([problem.answer for problem in problems], texts)
