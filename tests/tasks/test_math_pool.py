"""Processes that judge are bounded in time, replaced, and gone in the end."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ladi.tasks import math_pool
from ladi.tasks.base import TIMEOUT
from ladi.tasks.math_pool import DIED, MathPool

ENDLESS = ("x + 1", r"5^{5^{5^{5^{5}}}}")
RIGHT, WRONG = ("x^2 - 1", "(x-1)(x+1)"), ("x^2 - 1", "(x-1)(x+2)")


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def until(condition, limit_s: float = 20.0) -> bool:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def pool():
    """Patient, so that a busy machine fails no test."""
    before = children()
    pool = MathPool(num_workers=2, time_limit_s=60.0)
    yield pool
    pool.close()
    assert children() <= before, "a process, or its zombie, is left"


def correct(pool, *pairs):
    return [verdict.correct for verdict in pool.verify_many(pairs)]


def test_verdicts_come_in_the_order_of_the_pairs_from_no_more_processes_than_needed(pool):
    before = children()
    assert pool.verify_many([]) == []
    assert children() == before
    assert correct(pool, RIGHT) == [True]
    assert len(children() - before) == 1
    assert correct(pool, RIGHT, WRONG, RIGHT, ("2y", "y+y"), WRONG) == [True, False, True, True, False]
    assert len(children() - before) == 2


def test_an_endless_input_ends_at_the_time_limit_and_the_next_one_is_judged(caplog):
    pool = MathPool(num_workers=1, time_limit_s=1.5)
    start = time.monotonic()
    verdicts = pool.verify_many([ENDLESS, ENDLESS])
    assert time.monotonic() - start < 10
    assert [v.reason for v in verdicts] == [TIMEOUT, TIMEOUT]
    assert not any(v.correct for v in verdicts)
    assert pool.timeouts == 1  # equal pairs are judged once
    assert "1 of 1 answers reached the time limit of 1.5 s" in caplog.text
    pool.time_limit_s = 60.0
    assert correct(pool, RIGHT) == [True]
    pool.close()


def kill_at_work(pool, pair) -> None:
    """Kill the process that judges the pair, and wait until it is gone."""
    assert until(lambda: any(worker.pair == pair for worker in pool._workers), 120.0)  # it may have to start first
    worker = next(worker for worker in pool._workers if worker.pair == pair)
    worker.process.kill()
    assert until(lambda: worker not in pool._workers)


def test_a_pair_whose_process_dies_is_judged_by_another_once_more(pool, caplog):
    with ThreadPoolExecutor(1) as threads:
        batch = threads.submit(pool.verify_many, [ENDLESS, RIGHT])
        kill_at_work(pool, ENDLESS)
        kill_at_work(pool, ENDLESS)
        assert [v.reason for v in batch.result()] == [DIED, "ok"]
    assert pool.deaths == 1
    assert "the judge died over 1 of 2 answers, twice, and they count as wrong (1 so far)" in caplog.text
    assert correct(pool, RIGHT, WRONG) == [True, False]


def test_a_process_that_dies_once_costs_no_verdict(pool, monkeypatch, caplog):
    give, given = math_pool.Worker.give, []

    def killed_at_first(worker, pair, deadline):
        given.append(pair)
        taken = give(worker, pair, deadline)
        if len(given) == 1:
            worker.process.kill()
        return taken

    monkeypatch.setattr(math_pool.Worker, "give", killed_at_first)
    assert correct(pool, RIGHT) == [True]
    assert given == [RIGHT, RIGHT]
    assert pool.deaths == 0
    assert not caplog.text


def test_a_process_killed_while_it_waits_costs_no_verdict(pool):
    before = children()
    assert correct(pool, RIGHT, WRONG) == [True, False]
    workers = children() - before
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    assert until(lambda: all(worker.status() == psutil.STATUS_ZOMBIE for worker in workers))
    assert correct(pool, WRONG, RIGHT) == [False, True]
    assert pool.deaths == 0


def test_it_works_from_many_threads_at_once(pool):
    pairs = [(f"x^2 - {i**2}", f"(x-{i})(x+{i + i % 2})") for i in range(1, 9)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda pair: (threading.current_thread(), correct(pool, pair)), pairs))
    assert threading.main_thread() not in {thread for thread, _ in results}
    assert [verdict for _, verdict in results] == [[False], [True]] * 4


def test_an_interrupted_batch_leaves_no_reply_for_the_next(pool, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    correct(pool, RIGHT)
    with monkeypatch.context() as patch:
        patch.setattr(math_pool, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.verify_many([RIGHT])
    assert correct(pool, WRONG) == [False]


def test_a_percentage_in_words_is_judged(pool):
    """sympy does not say by itself whether 20 and 20 * (1/100) differ."""
    assert [v.reason for v in pool.verify_many([("20", "20 percent"), ("20", "21 percent")])] == ["ok", "wrong answer"]


def test_ctrl_c_in_the_terminal_does_not_end_workers_that_start(monkeypatch):
    """It goes to the whole process group; the loop that trains ends its step first."""
    program = (
        "import os, signal, threading, time; from ladi.tasks.math_pool import MathPool\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "threading.Timer(0.3, lambda: os.killpg(0, signal.SIGINT)).start()\n"
        "print(MathPool(1).verify_many([('x+1', '1+x')])[0].correct)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, start_new_session=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_closed_pool_starts_again_when_it_is_asked(pool):
    assert correct(pool, RIGHT) == [True]
    pool.close()
    assert correct(pool, WRONG) == [False]


def test_processes_end_with_the_one_that_started_them_even_while_they_judge():
    code = f"from ladi.tasks.math_pool import MathPool; MathPool(1, 1.0).verify_many([{ENDLESS!r}] * 1)"
    parent = psutil.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    assert until(parent.children)
    (child,) = parent.children()
    parent.kill()
    parent.wait()
    assert until(lambda: not psutil.pid_exists(child.pid) or child.status() == psutil.STATUS_ZOMBIE)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_workers"):
        MathPool(num_workers=0)
    with pytest.raises(ValueError, match="time_limit_s"):
        MathPool(time_limit_s=0.0)
