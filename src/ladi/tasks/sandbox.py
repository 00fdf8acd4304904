"""Runs generated programs shut in, and tells whether they pass their tests.

    run_many([Program(code="def add(a, b): return a + b", names=("add",), tests="assert add(1, 2) == 3")], Limits(), 1)

`sandbox_isolation.py` says how a program is shut in, `sandbox_judge.py` why it cannot fake a verdict, and
`sandbox_server.py` which processes there are.
"""

import atexit
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from ladi.tasks.base import FAILED
from ladi.tasks.sandbox_isolation import remove

logger = logging.getLogger(__name__)

SERVER = Path(__file__).with_name("sandbox_server.py")
START_LIMIT_S = 60.0
"""Longest time for a server to start."""
GRACE_S = 30.0
"""Longest time for it to clean up after a program."""
MAX_CODE = 1 << 20
"""Characters of a program."""
KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "TMPDIR")
"""What of the environment a server gets: how the interpreter starts, and where temporary folders go."""

Tier = Literal["namespaces", "rlimits"]
"""Ways of shutting a program in, the stronger first."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use."""

    wall_s: float = 10.0
    """Time for the program and all its tests."""
    cpu_s: int = 5
    """Processor time of each process."""
    memory_bytes: int = 512 << 20
    """Address space of each process."""
    processes: int = 8
    """Processes and threads at a time."""
    file_bytes: int = 16 << 20
    """Size of a file; with namespaces, of all files together."""
    output_bytes: int = 1 << 20
    """Length of what it prints."""

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"limit {name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program and its tests, which run apart."""

    code: str
    setup: str = ""
    """Code of the tests that the program's process runs after it, to make what tests pass back to it."""
    names: tuple[str, ...]
    """What the tests use of the program."""
    prelude: str = ""
    """Code that runs before the tests; `names` are the program's nevertheless."""
    tests: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program."""

    passed: bool
    reason: str
    """"ok", the exception of the test that failed, or what ended the program: "timeout", "cpu limit", "memory",
    "output limit", "exit 1", "signal 9"."""
    output: str = ""
    """The end of what it printed."""
    canonical: str = ""
    """Normal form of a program that passed."""

    @property
    def is_failure(self) -> bool:
        """Whether running it failed, whatever the program."""
        return self.reason.startswith(FAILED)


DIED = Outcome(passed=False, reason=f"{FAILED}: the server died")
TRIAL = Program(code="def answer(): return 1", names=("answer",), tests="assert answer() == 1")


def frame(message: dict[str, Any]) -> bytes:
    """A message as the server reads it."""
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


class Server:
    """A process that runs one program at a time, each in a fork."""

    def __init__(self, tier: Tier):
        """Start one; `error` says why the tier cannot be had, or is empty."""
        command = [sys.executable, "-I", "-S", "-X", "utf8", str(SERVER), tier]
        self.process = subprocess.Popen(
            command,
            env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started = self._read(START_LIMIT_S)
        self.error = f"{' '.join(command)} does not start" if started is None else started["error"]
        self.is_usable = not self.error

    def run(self, program: Program, limits: Limits) -> Outcome:
        """What became of a program."""
        assert self.process.stdin is not None
        self.is_usable = False
        job = {"code": program.code, "setup": program.setup, "limits": asdict(limits)}
        tests = {"names": program.names, "prelude": program.prelude, "tests": program.tests}
        try:
            self.process.stdin.write(frame(job) + frame(tests))
            self.process.stdin.flush()
        except OSError:
            return DIED
        reply = self._read(limits.wall_s + GRACE_S)
        if reply is None:
            return DIED
        self.is_usable = not reply.pop("is_last")
        return Outcome(**reply)

    def end(self) -> None:
        """Let it kill what it runs, reap it and end; if it does not, kill it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        for folder in Path(tempfile.gettempdir()).glob(f"ladi-{self.process.pid}-*"):  # it was killed, in the weak tier
            with contextlib.suppress(OSError):
                remove(str(folder))

    def _read(self, limit_s: float) -> dict[str, Any] | None:
        """Its next line; None if it has died or takes longer."""
        assert self.process.stdout is not None
        if not wait([self.process.stdout], limit_s):  # pyright: ignore
            self.process.kill()
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None


class Sandbox:
    """Runs programs, several at a time; may be called from any thread. Servers start when they are first needed."""

    def __init__(self, tier: Tier | None = None):
        """Use this tier; None takes the stronger one if the system permits it."""
        self._tier: Tier | None = tier
        self._servers: list[Server] = []
        self._idle: list[Server] = []
        self._lock = threading.Lock()
        self.weakness = "not tried"
        """Why the stronger tier cannot be had."""
        self.failures = 0
        """Programs that could not be run, twice, so far."""
        atexit.register(self.close)

    def probe(self) -> Tier:
        """The tier of this sandbox; the first time, tries it and prints it."""
        with self._lock:
            if self._tier is None:
                server = Server("namespaces")
                failed = Outcome(passed=False, reason=server.error)
                outcome = server.run(TRIAL, Limits()) if server.is_usable else failed
                server.end()
                weakness = outcome.reason.removeprefix(f"{FAILED}: ")
                self._tier, self.weakness = ("namespaces", "") if outcome.passed else ("rlimits", weakness)
                means = "namespaces of their own" if outcome.passed else f"resource limits alone ({self.weakness})"
                print(f"generated programs are shut in by {means}", flush=True)
            return self._tier

    def run_many(
        self, programs: Sequence[Program], limits: Limits, num_workers: int, allow_unsafe: bool = False
    ) -> list[Outcome]:
        """What became of each program; one that a server could not run is given to a fresh one once more.

        Raises:
            ValueError: if only the weak tier is to be had and `allow_unsafe` is not set, or num_workers is below 1.
            RuntimeError: if no server starts.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        if self.probe() == "rlimits" and not allow_unsafe:
            raise ValueError(
                f"generated programs could read your files and use the network: no namespaces here ({self.weakness}); "
                "take a system that permits user namespaces, or, if you trust them, set the task's allow_unsafe_exec: "
                "--data.task.allow-unsafe-exec to train, --task.allow-unsafe-exec to evaluate"
            )
        threads = ThreadPoolExecutor(num_workers)
        try:
            outcomes = list(threads.map(lambda program: self._run(program, limits), programs))
        finally:
            threads.shutdown(cancel_futures=True)
        failures = [outcome.reason for outcome in outcomes if outcome.is_failure]
        if failures:
            with self._lock:
                self.failures += len(failures)
            logger.warning(
                "%d of %d programs could not be run, twice, and count as wrong (%d so far): %s",
                len(failures),
                len(programs),
                self.failures,
                failures[0],
            )
        return outcomes

    def close(self) -> None:
        """End all servers and what they run; a later call starts fresh ones."""
        with self._lock:
            servers, self._servers, self._idle = self._servers, [], []
        for server in servers:
            server.end()

    def _run(self, program: Program, limits: Limits) -> Outcome:
        if len(program.code) > MAX_CODE:
            return Outcome(passed=False, reason="too long")
        outcome, is_open = self._try(program, limits)
        return self._try(program, limits)[0] if outcome.is_failure and is_open else outcome

    def _try(self, program: Program, limits: Limits) -> tuple[Outcome, bool]:
        """What became of a program, and whether the sandbox was not closed meanwhile."""
        server = self._take()
        try:
            outcome = server.run(program, limits)
        finally:
            is_open = self._give_back(server)
        return outcome, is_open

    def _take(self) -> Server:
        """An idle server, or a fresh one."""
        with self._lock:
            while self._idle:
                server = self._idle.pop()
                if server.process.poll() is None:
                    return server
                self._servers.remove(server)
                server.end()
        server = Server(self.probe())
        if server.error:
            raise RuntimeError(f"no server for generated programs: {server.error}")
        with self._lock:
            self._servers.append(server)
        return server

    def _give_back(self, server: Server) -> bool:
        """Keep a server for the next program if it can take one and is wanted; whether it is wanted."""
        with self._lock:
            is_wanted = server in self._servers
            if server.is_usable and is_wanted:
                self._idle.append(server)
                return True
            if is_wanted:
                self._servers.remove(server)
        server.end()
        return is_wanted


@lru_cache
def shared_sandbox() -> Sandbox:
    """The one sandbox of this process."""
    return Sandbox()
