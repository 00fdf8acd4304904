"""The process in which math-verify judges, started by `math_pool.py` as a script; it imports nothing of ladi.

Every line of its input is [gold, answer] in JSON, every line of its output whether they are equal. sympy reads texts of
models here and nowhere else: on the main thread of a process with bounded memory, which its parent may kill.
"""

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify

READY = "ready"
MAX_MEMORY = 2 << 30
"""Bytes of address space; some inputs would fill the machine."""
ALARM_FACTOR = 2.0
"""A worker that outlives its parent ends itself after this many time limits."""
RELATIVE_ERROR = 1e-6
"""Largest relative difference of two numbers that are equal."""


def read(answer: str) -> list[Any]:
    """The answer as math-verify reads it, whole: nothing is searched in it."""
    config = LatexExtractionConfig(boxed_match_priority=0)
    return parse(rf"\boxed{{{answer}}}", [config], extraction_mode="first_match", parsing_timeout=0)


def same_size(a: Any, b: Any) -> bool:
    """False for numbers that differ by more than `RELATIVE_ERROR`.

    math-verify looks at their difference to a number of decimals alone, where 2^-99 equals 2^-98.
    """
    if a == b or not all(isinstance(x, sympy.Expr) and x.is_number for x in (a, b)):
        return True
    a, b = (sympy.N(x.doit()) for x in (a, b))  # a percentage is a product that sympy has yet to carry out
    return bool(abs(a - b) <= RELATIVE_ERROR * max(abs(a), abs(b)))


def equal(gold: str, answer: str) -> bool:
    """Whether math-verify takes the answer for the gold one."""
    a, b = read(gold), read(answer)
    if not verify(a, b, timeout_seconds=None):
        return False
    return any(sign in gold + answer for sign in ("%", "percent")) or same_size(a[0], b[0])


def main() -> None:
    """Judge until the input ends."""
    time_limit_s = float(sys.argv[1])
    logging.disable()
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no verdict
    replies.write(json.dumps(READY) + "\n")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, ALARM_FACTOR * time_limit_s)
        replies.write(json.dumps(equal(*json.loads(line))) + "\n")
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
