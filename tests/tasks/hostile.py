"""Programs that cheat or harm: none may pass, harm, hang or leave anything. Never run one outside of the sandbox.

The tests say `assert add(1, 2) == 3` and `the-hidden-tests`. Programs that try what they must not manage (read, write,
connect, kill) return the right sum only if they managed.
"""

GUARD = """
import os, resource
limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
assert 0 < limit < 4096, "only where processes are limited"
"""

EVERYWHERE = {
    "fork bomb": GUARD
    + """
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    "fork bomb of orphans": GUARD
    + """
while True:
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
    except OSError:
        pass
""",
    "threads": """
import threading, time
def add(a, b):
    for _ in range(10_000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return a + b
""",
    "endless loop": "while True: pass",
    "endless loop that ignores signals": """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    pass
""",
    "sleep": "import time\ntime.sleep(1000)",
    "stop": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "slow arithmetic": "def add(a, b): return a + b + 0 * len(str(7 ** 7 ** 9))",
    "memory": "hog = []\nwhile True: hog.append(bytearray(10_000_000))",
    "much memory at once": "hog = bytearray(1 << 40)",
    "memory in files": """
import os
def add(a, b):
    for i in range(1000):
        memory = os.memfd_create(str(i))
        os.write(memory, bytes(1 << 24))
    return a + b
""",
    "raise limits": """
import resource
def add(a, b):
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return a + b
""",
    "huge output": "while True: print('x' * 10_000)",
    "huge errors": "import os\nwhile True: os.write(2, b'x' * 10_000)",
    "huge file": """
def add(a, b):
    with open("huge", "wb") as file:
        for _ in range(1000):
            file.write(bytes(1 << 20))
    return a + b
""",
    "huge reply": "def add(a, b): return 'x' * 50_000_000",
    "deep reply": """
def add(a, b):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return deep
""",
    "cyclic reply": "def add(a, b):\n    cycle = []\n    cycle.append(cycle)\n    return cycle",
    "folders that cannot be removed": """
import os
def add(a, b):
    os.makedirs("a/b/c")
    os.symlink("/", "a/b/root")
    open("a/b/file", "w").close()
    os.chmod("a/b", 0)
    os.chmod("a", 0)
""",
    "folder that cannot be entered": "import os\ndef add(a, b): os.chmod('.', 0)",
    "folders too deep for a path": """
import os
def add(a, b):
    for _ in range(100):
        os.mkdir("x" * 100)
        os.chdir("x" * 100)
""",
    "leave at once": "import os\nos._exit(0)",
    "leave when asked": "import os\ndef add(a, b): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit when asked": "import sys\ndef add(a, b): sys.exit(0)",
    "exit handler": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "equal to everything": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 3
def add(a, b): return Equal()
""",
    "number equal to everything": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return Equal(7)
""",
    "patched builtins": """
import builtins
class Never(Exception): pass
builtins.AssertionError = Never
builtins.compile = lambda *args: None
builtins.exec = builtins.eval = lambda *args: None
builtins.int.__eq__ if False else None
def add(a, b): return 0
""",
    "patched operators": """
import ctypes, operator
operator.eq = lambda a, b: True
def add(a, b):
    ctypes.memmove(id(0), id(3), 32)  # 0 becomes 3, in this process
    return 7
""",
    "trace": """
import sys
def trace(frame, event, arg):
    frame.f_trace_opcodes = True
    frame.f_locals.update(tests="", names=[])
    return trace
sys.settrace(trace)
sys.setprofile(trace)
def add(a, b): return 0
""",
    "patched harness": """
import sys
frame = sys._getframe()
while frame:
    for name, value in {**frame.f_globals, **frame.f_locals}.items():
        if name in ("judge", "judging", "Remote", "encode", "decode", "canonical"):
            frame.f_globals[name] = lambda *args: {"passed": True, "reason": "ok"}
    frame = frame.f_back
def add(a, b): return 0
""",
    "search for the tests": """
import gc, re, sys
def texts():
    frame = sys._getframe()
    while frame:
        yield from (repr(value) for value in [*frame.f_locals.values(), *frame.f_globals.values()])
        frame = frame.f_back
    yield from (repr(thing) for thing in gc.get_objects())
def add(a, b):
    if any(re.search("the-hidden-test[s]", text) for text in texts()): return a + b
""",
    "search the memory for the tests": """
import ctypes, re
def add(a, b):
    ctypes.CDLL(None).prctl(4, 1)  # dumpable: lets /proc/self/mem be opened
    num_read = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if "rw" in line:
                memory.seek(start)
                data = memory.read(end - start)
                num_read += len(data)
                if re.search(b"the-hidden-test[s]", data): return a + b
    return f"read {num_read} bytes"
""",
    "memory of the parent": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
def add(a, b):
    if libc.ptrace(16, os.getppid(), None, None) == 0: return a + b
    buffer = ctypes.create_string_buffer(64)
    here, there = Span(ctypes.addressof(buffer), 64), Span(id(0), 64)
    if libc.process_vm_readv(os.getppid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0: return a + b
    with open(f"/proc/{os.getppid()}/mem", "r+b"): return a + b
""",
    "forged verdict": """
import json, os
verdict = json.dumps({"passed": True, "reason": "ok", "canonical": ""})
for text in (verdict, "tests read\\n" + verdict, verdict + "\\n", '["value", null]\\n' + verdict + "\\n", "ok", "1"):
    print(text)
    for fd in range(1024):
        try:
            os.write(fd, text.encode())
        except OSError:
            pass
def add(a, b): return 0
""",
    "forged replies": """
import os
for fd in range(3, 64):
    try:
        os.write(fd, b'["value", true]\\n["value", ["r", "add"]]\\n["error", ["SystemExit", "0"]]\\n' * 10)
    except OSError:
        pass
def add(a, b): return 0
""",
    "odd replies": """
import os
for fd in range(3, 64):
    try:
        os.write(fd, b'["value", null]\\n["value", ["y", "exec"]]\\n')
    except OSError:
        pass
""",
    "closed pipes": "import os\nos.closerange(0, 1024)\ndef add(a, b): return a + b",
    "raise SystemExit": "def add(a, b): raise SystemExit(0)",
    "raise KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "raise what cannot be printed": """
class Odd(Exception):
    def __str__(self): raise Odd
def add(a, b): raise Odd
""",
    "no program": "",
    "wrong": "def add(a, b): return a - b",
    "null character": "def add(a, b): return a + b\0",
    "surrogate": "def add(a, b): return '\ud800'",
    "nested": "def add(a, b): return " + "(" * 5000 + "3" + ")" * 5000,
}
"""Harmless in both tiers."""

DETACHED = """
import os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(60)
        os._exit(0)
    os._exit(0)
def add(a, b): return 0
"""

SHUT_IN = {
    "read the home folder": """
import os, sys
def add(a, b):  # the way to the interpreter may lead through it
    if any(not sys.base_prefix.startswith(os.path.join({home!r}, name)) for name in os.listdir({home!r})): return a + b
""",
    "read a file": "def add(a, b): return a + b if open({readable!r}).read() else 0",
    "read /etc/passwd": "def add(a, b): return a + b if open('/etc/passwd').read() else 0",
    "look at processes": "import os\ndef add(a, b): return a + b if os.listdir('/proc') else 0",
    "write a file": "def add(a, b): return a + b if open({writable!r}, 'w').write('x') else 0",
    "write to the root": "def add(a, b): return a + b if open('/x', 'w').write('x') else 0",
    "write to the libraries": "import os\ndef add(a, b): return a + b if open(os.__file__, 'a').write('#') else 0",
    "connect": """
import socket
def add(a, b): return a + b if socket.create_connection(("127.0.0.1", {port}), 1) else 0
""",
    "connect to a local socket": """
import socket
def add(a, b): return a + b if socket.socket(socket.AF_UNIX).connect({socket!r}) is None else 0
""",
    "send": """
import socket
def add(a, b): return a + b if socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53)) else 0
""",
    "kill everything": """
import os
assert os.getpid() < 100, "only in a process namespace"
os.kill(-1, 9)
def add(a, b): return 0
""",
    "kill process 1": """
import os, signal
assert os.getpid() < 100, "only in a process namespace"
for number in signal.Signals:
    if number != signal.SIGCHLD:
        os.kill(1, number)
def add(a, b): return 0
""",
    "kill a process": "import os\ndef add(a, b): return a + b if os.kill({pid}, 0) is None else 0",
    "new user namespace": """
import ctypes
def add(a, b): return a + b if ctypes.CDLL(None).unshare(0x10000000) == 0 else 0
""",
    "mount": """
import ctypes
def add(a, b): return a + b if ctypes.CDLL(None).mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == 0 else 0
""",
    "other root": "import os\ndef add(a, b): return a + b if os.chroot('/tmp') is None else 0",
    "other user": "import os\ndef add(a, b): return a + b if os.setuid(1000) is None else 0",
    "many files": """
def add(a, b):
    for i in range(100_000):
        open(str(i), "w").close()
    return a + b
""",
    "many large files": """
def add(a, b):
    for i in range(100):
        with open(str(i), "wb") as file:
            file.write(bytes(1 << 22))
    return a + b
""",
    "talk to the hypervisor": "import socket\ndef add(a, b): return a + b if socket.socket(40, 1) else 0",
    "talk to the kernel": "import socket\ndef add(a, b): return a + b if socket.socket(16, 3) else 0",
    "shared memory": """
import ctypes
libc = ctypes.CDLL(None)
def add(a, b):
    if max(libc.shmget(0, 1 << 20, 0o1600), libc.msgget(0, 0o1600), libc.semget(0, 1, 0o1600)) >= 0: return a + b
""",
    "system calls by other numbers": """
import ctypes, platform
libc = ctypes.CDLL(None)
def add(a, b):  # x32's, and io_uring
    if max(libc.syscall(0x40000000 + 29, 0, 1 << 20, 0o1600), libc.syscall(425, 8, bytes(120))) >= 0: return a + b
""",
}
"""Harmless where programs are shut in by namespaces; filled in by the tests."""
