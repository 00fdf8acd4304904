r"""Find the marked answer in a text and judge it against the gold one.

marked_answer("so 3 + 4 = 7\n#### 7")                        -> "7"
marked_answer(r"hence \boxed{\frac{1}{2}}")                  -> r"\frac{1}{2}"
marked_answer("hence <answer>x + 1</answer>")                -> "x + 1"
marked_answer("so 3 + 4 = 7")                                -> None
verify_answers(["1200"], ["#### $1,200.0"])[0].correct       -> True

Answers that are plain numbers or words are compared here, exactly; all others by math-verify (`math_pool.py`).
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from ladi.tasks.base import Verdict
from ladi.tasks.math_pool import MathPool, shared_pool

MAX_TEXT = 20_000
"""Longer texts are read from their end, characters."""
MAX_ANSWER = 500
"""Longest answer that is judged, characters."""
NO_ANSWER = "no boxed or tagged answer"

BOX = re.compile(r"\\\\|\\[{}]|\\(?:boxed|fbox)\s*(?:(?P<open>\{)|(?P<bare>-?[0-9][^\s{}$]*))|[{}]")
"""Everything that matters to the nesting of braces; a box without braces holds a number."""
NUMBER = re.compile(
    r"(?:\\?\$)?\ ?(?P<sign>[-+]?)\ ?(?:\\?\$)?"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})?(?P<decimals>\.[0-9]{1,40})?(?:/(?P<under>[0-9]{1,40}))?"
    r"\ ?(?P<percent>\\?%)?\.?",
    re.ASCII,
)
FRACTION = re.compile(r"(?P<sign>-?)\\[dt]?frac\{(?P<over>-?[0-9]{1,40})\}\{(?P<under>[0-9]{1,40})\}", re.ASCII)
BASED = re.compile(r"([0-9A-Za-z]+)_\{?([0-9]+)\}?", re.ASCII)
"""A number with its base, which math-verify does not read."""
WORDS = re.compile(r"[A-Za-z][A-Za-z ]*[A-Za-z]")
WITH_WORDS = re.compile(r"(?P<number>\S.{0,99}?) ?(?P<words>(?:or|[A-Za-z]{3,})(?:[ -][A-Za-z]+)*)\.?", re.ASCII)
"""A number with a unit behind it; shorter words may be variables."""
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
NO_UNITS = {"and", "or", "plus", "minus", "times", "over", "squared", "cubed", "half", "point"}
TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")


def last_box(text: str) -> tuple[int, str] | None:
    r"""Where the last \boxed{...} whose braces balance begins, and its content; of nested ones the innermost."""
    found, open_braces = None, []
    for match in BOX.finditer(text):
        if match["bare"]:
            box = (match.start(), match["bare"])
        elif match["open"] or match[0] == "{":
            open_braces.append(match)
            continue
        elif match[0] == "}" and open_braces:
            opened = open_braces.pop()
            if not opened["open"]:
                continue
            box = (opened.start(), text[opened.end() : match.start()])
        else:
            continue
        found = box if found is None else max(found, box)
    return found


def last_tag(text: str) -> tuple[int, str] | None:
    """Where the last <answer>...</answer> begins, and its content."""
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return None if min(start, end) < 0 else (start, text[start + len("<answer>") : end])


def last_hashes(text: str) -> tuple[int, str] | None:
    """Where the last #### begins, and the rest of its line."""
    start = text.rfind("####")
    return None if start < 0 else (start, text[start + len("####") :].split("\n", 1)[0])


def marked_answer(text: str) -> str | None:
    r"""The answer that begins last among \boxed{...}, <answer>...</answer> and #### (to its line's end), or None."""
    text = text[-MAX_TEXT:]
    found = [mark for find in (last_box, last_tag, last_hashes) if (mark := find(text)) and mark[1].strip()]
    return " ".join(max(found)[1].split()) if found else None


def plain_number(answer: str) -> tuple[Fraction, bool] | None:
    r"""The exact value of 1,200.50, $3, .5, 25\%, 3/4 or \frac{3}{4}, and whether it has a percent sign; else None."""
    answer = answer.replace("\\!", "").replace("{,}", ",").replace("\u2212", "-").strip("$ ")
    match = FRACTION.fullmatch(answer)
    if match:
        over, under, percent = match["over"], match["under"], False
    else:
        match = NUMBER.fullmatch(answer)
        if match is None or not (match["whole"] or match["decimals"]):
            return None
        over = (match["whole"] or "0").replace(",", "") + (match["decimals"] or "")
        under, percent = match["under"] or "1", bool(match["percent"])
    if int(under) == 0:
        return None
    value = Fraction(over) / int(under)
    return (-value if match["sign"] == "-" else value), percent


def without_unit(answer: str) -> tuple[Fraction, bool] | Literal[False] | None:
    """What `plain_number` says of a number with words behind it, where a unit says nothing, 8 million dollars is
    8,000,000 and 60 percent 60%; False where words make another number of it, None for all other texts.
    """
    match = WITH_WORDS.fullmatch(answer)
    number = plain_number(match["number"]) if match else None
    if match is None or number is None:
        return None
    value, percent = number
    words = match["words"].lower().replace("-", " ").split()
    if NO_UNITS.intersection(words):
        return False
    while words and words[0] in SCALES:
        value *= SCALES[words.pop(0)]
    return value, percent or words[:1] == ["percent"]


def same_number(a: tuple[Fraction, bool], b: tuple[Fraction, bool]) -> bool:
    """Whether two plain numbers are equal; 25% is both 25 and 0.25."""
    if a[0] == b[0]:
        return True
    percent, other = (a, b) if a[1] else (b, a)
    return percent[1] and not other[1] and percent[0] / 100 == other[0]


def compare(gold: str, answer: str) -> bool | None:
    """Whether two answers are equal, as far as their text, exact numbers or words tell; None if mathematics must."""
    if gold == answer:
        return True
    number, other = plain_number(gold), plain_number(answer)
    if number is not None and other is not None:
        return same_number(number, other)
    a, b = BASED.fullmatch(gold), BASED.fullmatch(answer)
    if a is not None and b is not None:
        return a.groups() == b.groups()
    gold, answer = (" ".join(TEXT_COMMAND.sub(r" \1", text).split()) for text in (gold, answer))
    if number is not None and (other := without_unit(answer)) is not None:
        return other is not False and same_number(number, other)
    if WORDS.fullmatch(gold) and WORDS.fullmatch(answer):  # to math-verify words are products of letters
        return gold.replace(" ", "").casefold() == answer.replace(" ", "").casefold()
    return None


def quick_verdict(gold: str, answer: str | None) -> Verdict | None:
    """The verdict that needs no mathematics, or None."""
    if answer is None:
        return Verdict(correct=False, reason=NO_ANSWER)
    same = compare(gold, answer)
    if same:
        return Verdict(correct=True, reason="ok", canonical=gold)
    if same is None and len(answer) > MAX_ANSWER:
        return Verdict(correct=False, reason="answer too long")
    return None if same is None else Verdict(correct=False, reason="wrong answer")


def verify_answers(golds: Sequence[str], texts: Sequence[str], pool: MathPool | None = None) -> list[Verdict]:
    """The verdict on the marked answer of each text, by `pool` or the one of this process; no text makes it raise.

    `canonical` is the gold answer: all correct answers are one solution.
    """
    pairs = [(" ".join(gold.split()), marked_answer(text)) for gold, text in zip(golds, texts, strict=True)]
    verdicts = [quick_verdict(gold, answer) for gold, answer in pairs]
    hard = [(gold, answer) for (gold, answer), verdict in zip(pairs, verdicts, strict=True) if answer and not verdict]
    judged = iter((pool or shared_pool()).verify_many(hard) if hard else ())
    return [verdict or next(judged) for verdict in verdicts]
