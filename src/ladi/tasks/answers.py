r"""Find the final answer in a text and compare it with the true one.

extract_answer("so 3 + 4 = 7\n#### 7")            -> "7"
extract_answer(r"hence \boxed{\frac{1}{2}}")      -> r"\frac{1}{2}"
same_answer("1,200.0", "$1200")                   -> True
"""

import re
from fractions import Fraction
from typing import Any

from math_verify import parse, verify

MAX_TEXT = 20_000
"""Longer texts are read from their end."""
NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?", re.ASCII)
PLAIN = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:/[0-9]{1,40})?", re.ASCII)
SAID = re.compile(r"answer is:?\s*(.+?)\s*(?:\.?\s*$|\.\s)", re.IGNORECASE | re.MULTILINE)


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, braces balanced; None if there is none that ends."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, first = 0, start + len(r"\boxed{")
    for i in range(first - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[first:i]
    return None


def extract_answer(text: str) -> str:
    r"""The final answer: after the last ####, in the last \boxed{}, after "answer is", the last number, or the text."""
    text = text[-MAX_TEXT:]
    if "####" in text:
        lines = text.rsplit("####", 1)[1].strip().splitlines()
        return lines[0].strip() if lines else ""
    inside = boxed(text)
    if inside is not None:
        return inside.strip()
    said = SAID.findall(text)
    if said:
        return said[-1].strip()
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else text.strip()


def as_number(answer: str) -> Fraction | None:
    """The exact value of a plain number such as 1,200.50, $3, 25% or 3/4; None for anything else."""
    plain = answer.strip().removeprefix("$").removesuffix("%").removesuffix(".").replace(",", "").strip()
    if not PLAIN.fullmatch(plain):
        return None
    numerator, _, denominator = plain.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / (Fraction(denominator) if denominator else 1)


def same_answer(answer: str, truth: str) -> bool:
    """Whether two answers are equal: as text, as exact numbers, or as LaTeX (math-verify); never raises."""
    if answer.strip() == truth.strip():
        return True
    a, b = as_number(answer), as_number(truth)
    if a is not None and b is not None:
        return a == b
    if "\\" not in answer + truth or len(answer) + len(truth) > 1000:
        return False
    # math-verify gives an empty list or False for what it cannot read. Its own timeouts need signals, which only the
    # main thread has; the length bound above does their work.
    no_timeout: Any = None
    gold, found = (parse(f"${text}$", parsing_timeout=no_timeout) for text in (truth, answer))
    return bool(verify(gold, found, timeout_seconds=no_timeout))
