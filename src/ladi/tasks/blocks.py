"""Cut a chain of thought into blocks, one sentence or line each.

"Half of 3.5 is 1.75. Add 1, e.g. by hand."  ->  "Half of 3.5 is 1.75." | "Add 1, e.g. by hand."
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

SplitBy = Literal["sentence", "line", "whole"]

# A sentence ends at . ! or ? before white space, also where a quotation, bracket or formula closes after it, as in
# "$x = 3.$ Then"; unless the dot belongs to an abbreviation or the formula ends only after the white space.
SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')$])|(?<=[.!?]\$\$)|(?<=[.!?]\\[\])]))"
    r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\betc\.)(?<!\bvs\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)\s+(?!\s|\\end\{|\\\])"
)


class Block(NamedTuple):
    """The text of a block, and what its reader has seen before it: the question and the earlier blocks."""

    before: str
    text: str


def before_block(question: str, earlier: Sequence[str]) -> str:
    """What stands before a block: question and earlier blocks, a line each."""
    return "".join(f"{text}\n" for text in (question, *earlier))


def split_cot(cot: str, by: SplitBy) -> tuple[str, ...]:
    """The blocks of a chain of thought, in order, without empty ones; joined they are the text up to white space. Lines
    keep their indentation, as code needs it.

    Raises:
        ValueError: if the way of splitting is unknown.
    """
    if by == "whole":
        parts = [cot]
    elif by == "line":
        parts = cot.splitlines()
    elif by == "sentence":
        parts = [part for line in cot.splitlines() for part in SENTENCE_END.split(line)]
    else:
        raise ValueError(f"unknown split {by!r}; use sentence, line or whole")
    return tuple(part.rstrip() if by == "line" else part.strip() for part in parts if part.strip())
