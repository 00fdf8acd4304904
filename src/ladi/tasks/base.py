"""What a task is: problems by index, and a verifier."""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

TIMEOUT = "timeout"
"""Reason of a verdict whose judging reached a time limit."""
FAILED = "not judged"
"""Beginning of the reason of a verdict where judging itself failed, twice: it says nothing of the text."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question, the blocks of its chain of thought, and its answer."""

    question: str
    steps: tuple[str, ...]
    """The chain of thought, one entry a block."""
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What the verifier needs beside the texts, such as `numbers` and `target`."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a text solves a problem, and why not."""

    correct: bool
    reason: str
    """"ok", or what is wrong, in a few words."""
    canonical: str = ""
    """Normal form of a correct solution: two texts with the same one are the same solution."""

    @property
    def timed_out(self) -> bool:
        """Judging reached a time limit."""
        return self.reason == TIMEOUT

    @property
    def unjudged(self) -> bool:
        """Judging failed, whatever the text."""
        return self.reason.startswith(FAILED)


class Task(Protocol):
    """A source of problems and the judge of their answers; a frozen dataclass of settings."""

    @property
    def name(self) -> str: ...

    @property
    def alphabet(self) -> str:
        """Every character its texts can contain (for a character tokenizer)."""
        ...

    @property
    def step_separator(self) -> str:
        """Joins steps to the text of the chain of thought."""
        ...

    @property
    def cot_in_answer(self) -> bool:
        """Whether the answer already spells the steps."""
        ...

    @property
    def needs_mark(self) -> bool:
        """Whether `verify` reads only an answer that its text marks, as tasks whose texts are free do."""
        ...

    @property
    def splits(self) -> tuple[str, ...]: ...

    def problem(self, split: str, index: int) -> Problem:
        """Problem `index` of a split: a pure function, so that a resumed run continues by index alone."""
        ...

    def num_problems(self, split: str) -> int | None:
        """Size of a split; None if it is endless."""
        ...

    def verify(self, problem: Problem, text: str) -> Verdict:
        """The verdict on an answer text; never raises, whatever the text."""
        ...


def characters(problems: Iterable[Problem]) -> str:
    """Every character of the problems' texts, sorted."""
    return "".join(sorted({c for p in problems for text in (p.question, *p.steps, p.answer) for c in text}))


def pick(problems: Sequence[Problem], index: int, where: str) -> Problem:
    """Problem `index` of a finite split, whose name is `where`.

    Raises:
        ValueError: if there is none.
    """
    if not 0 <= index < len(problems):
        raise ValueError(f"{where} has {len(problems)} problems, so no problem {index}; ask for fewer questions")
    return problems[index]


class Published:
    """Base of tasks whose splits are finite and read as a whole: a task says how (`read`) and how texts are judged."""

    name: str

    @property
    def source(self) -> str:
        """Names the data in errors."""
        return self.name

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the published splits."""
        return ("train", "test")

    def read(self, split: str) -> tuple[Problem, ...]:
        """All problems of one of `splits`.

        Raises:
            ValueError: if they cannot be read.
        """
        raise NotImplementedError

    def verify_many(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """The verdict on each text for its problem."""
        raise NotImplementedError

    def problems(self, split: str) -> tuple[Problem, ...]:
        """All problems of a split.

        Raises:
            ValueError: if the split is unknown, or cannot be read.
        """
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}; {self.source} has {', '.join(self.splits)}")
        return self.read(split)

    @property
    def alphabet(self) -> str:
        """Every character of the texts of the first split, which is that of training where there is one."""
        return characters(self.problems(self.splits[0]))

    def num_problems(self, split: str) -> int:
        """Problems of a split."""
        return len(self.problems(split))

    def problem(self, split: str, index: int) -> Problem:
        """Problem `index` of a split.

        Raises:
            ValueError: if the split is unknown or has no such problem.
        """
        return pick(self.problems(split), index, f"{self.source} {split}")

    def verify(self, problem: Problem, text: str) -> Verdict:
        """The verdict on one text."""
        return self.verify_many([problem], [text])[0]


def asked(problem: Problem) -> str:
    """What a problem asks: its question, or `meta["text"]` where the question adds to that."""
    return problem.meta.get("text", problem.question)


def overlap(train: Iterable[str], test: Iterable[str]) -> int:
    """How many of the test questions also occur in training, whatever their case and white space."""
    seen = {" ".join(question.casefold().split()) for question in train}
    return sum(" ".join(question.casefold().split()) in seen for question in test)


def stable_hash(*parts: object) -> int:
    """A 64-bit hash of the parts' text, the same in every process and on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def stable_uniform(*parts: object) -> float:
    """A number in [0, 1) from the parts' stable hash."""
    return stable_hash(*parts) / 2**64


def index_random(*parts: object) -> random.Random:
    """A generator seeded by the parts alone: what makes random access to problems possible."""
    return random.Random(stable_hash(*parts))
