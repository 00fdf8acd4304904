"""Equality of mathematical answers, judged by math-verify in processes that are killed and replaced at a time limit.

math-verify's own time limits need the main thread, and some inputs (5^{5^{5^{5^5}}}) stay for long in one call of C
code, which its signals do not end. So the pool keeps processes and talks to them in lines of JSON over pipes (POSIX).
"""

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path

from ladi.tasks.base import FAILED, TIMEOUT, Verdict

DIED = f"{FAILED}: the judge died"
WORKER = Path(__file__).with_name("math_worker.py")
START_LIMIT_S = 120.0
"""Longest time for a process to import math-verify."""

Pair = tuple[str, str]
"""The gold answer and the one to judge."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Worker:
    """A process that starts, waits or judges."""

    process: subprocess.Popen[bytes]
    deadline: float
    """When it has to have started or judged, on the monotonic clock."""
    is_ready: bool = False
    pair: Pair | None = None
    """What it judges."""

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.pair is None

    def give(self, pair: Pair, deadline: float) -> bool:
        """Let it judge a pair; False if it is dead."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(pair).encode() + b"\n")
        except OSError:
            return False
        self.pair, self.deadline = pair, deadline
        return True

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class MathPool:
    """Judges pairs of answers, several at a time; may be called from any thread. Processes start when first needed."""

    def __init__(self, num_workers: int = min(8, os.cpu_count() or 1), time_limit_s: float = 5.0):
        if num_workers < 1 or time_limit_s <= 0:
            raise ValueError(f"need num_workers >= 1 and time_limit_s > 0, got {num_workers} and {time_limit_s}")
        self.num_workers, self.time_limit_s = num_workers, time_limit_s
        self.timeouts = 0
        """Pairs that reached the time limit so far."""
        self.deaths = 0
        """Pairs whose process ended by itself (memory, stack), twice, so far."""
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        atexit.register(self._kill)

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """A verdict for each (gold, answer); equal pairs are judged once, and once more if the process dies over them.

        Raises:
            RuntimeError: if the processes do not start.
        """
        distinct = list(dict.fromkeys(pairs))
        with self._lock:
            timeouts, deaths = self.timeouts, self.deaths
            verdicts = self._judge(distinct)
            if self.timeouts > timeouts:
                logger.warning(
                    "%d of %d answers reached the time limit of %g s and count as wrong (%d so far)",
                    self.timeouts - timeouts,
                    len(distinct),
                    self.time_limit_s,
                    self.timeouts,
                )
            if self.deaths > deaths:
                logger.warning(
                    "the judge died over %d of %d answers, twice, and they count as wrong (%d so far)",
                    self.deaths - deaths,
                    len(distinct),
                    self.deaths,
                )
        return [verdicts[pair] for pair in pairs]

    def close(self) -> None:
        """End all processes, after the batch in progress; a later call starts fresh ones."""
        with self._lock:
            for worker in tuple(self._workers):
                self._drop(worker)

    def _kill(self) -> None:
        """Kill all processes, whatever another thread does with them: the interpreter ends."""
        for worker in tuple(self._workers):
            worker.process.kill()
            worker.process.wait()

    def _judge(self, pairs: list[Pair]) -> dict[Pair, Verdict]:
        waiting, verdicts, again = deque(pairs), {}, set()
        try:
            while len(verdicts) < len(pairs):
                self._assign(waiting)
                for worker in self._replied():
                    self._read(worker, verdicts, waiting, again)
                self._end_overdue(verdicts)
        finally:  # an interrupted batch must not leave replies for the next
            for worker in [w for w in self._workers if w.pair is not None]:
                self._drop(worker)
        return verdicts

    def _assign(self, waiting: deque[Pair]) -> None:
        """Give pairs to idle workers, and start workers for the rest."""
        for worker in [w for w in self._workers if w.is_idle]:
            if waiting:
                if worker.give(waiting[0], time.monotonic() + self.time_limit_s):
                    waiting.popleft()
                else:
                    self._drop(worker)
        num_starting = sum(not w.is_ready for w in self._workers)
        for _ in range(min(self.num_workers - len(self._workers), len(waiting) - num_starting)):
            # -P: the worker's folder has a math.py, which is not the standard library's
            command = [sys.executable, "-P", str(WORKER), str(self.time_limit_s)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is this process's to handle
            )
            self._workers.append(Worker(process, time.monotonic() + START_LIMIT_S))

    def _replied(self) -> list[Worker]:
        """Workers that have something to say, at the latest when one is overdue."""
        active = {w.process.stdout: w for w in self._workers if not w.is_idle}
        until = min(w.deadline for w in active.values())
        return [active[pipe] for pipe in wait(list(active), max(0.0, until - time.monotonic()))]  # pyright: ignore

    def _read(self, worker: Worker, verdicts: dict[Pair, Verdict], waiting: deque[Pair], again: set[Pair]) -> None:
        """Take a worker's line, or notice its death: what it judged waits `again`, if it has not before."""
        assert worker.process.stdout is not None
        line = worker.process.stdout.readline()
        if not worker.is_ready:
            if not line:
                self._fail(worker)
            worker.is_ready = True
            return
        assert worker.pair is not None
        if not line:
            if worker.pair in again:
                self.deaths += 1
                verdicts[worker.pair] = Verdict(correct=False, reason=DIED)
            else:
                again.add(worker.pair)
                waiting.append(worker.pair)
            self._drop(worker)
            return
        gold = worker.pair[0]
        if json.loads(line):
            verdicts[worker.pair] = Verdict(correct=True, reason="ok", canonical=gold)
        else:
            verdicts[worker.pair] = Verdict(correct=False, reason="wrong answer")
        worker.pair = None

    def _end_overdue(self, verdicts: dict[Pair, Verdict]) -> None:
        """Kill workers that reached their deadline."""
        now = time.monotonic()
        for worker in [w for w in self._workers if not w.is_idle and w.deadline <= now]:
            if worker.pair is None:
                self._fail(worker)
            else:
                self.timeouts += 1
                verdicts[worker.pair] = Verdict(correct=False, reason=TIMEOUT)
                self._drop(worker)

    def _drop(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.end()

    def _fail(self, worker: Worker) -> None:
        self._drop(worker)
        raise RuntimeError(f"the judge of mathematics does not start; this shows why: {sys.executable} -P {WORKER} 5")


@lru_cache
def shared_pool() -> MathPool:
    """The one pool of this process."""
    return MathPool()
