"""Two ways of shutting a process in, each made for one program at a time; standard library only.

`Namespaces`: user, mount, process, network, IPC and host-name namespaces (Linux 5.14 or newer). The file system is the
interpreter's libraries, read-only, and an empty /tmp in memory. There is no network, no process to see or signal, no
/proc, no privilege, no way to a further user namespace, and a filter of system calls closes what namespaces leave open.
Whatever a program forks dies with process 1.

`Rlimits`: a temporary folder as working folder and, if root starts it, a user of its own. What everybody may read can
be read (for root's own interpreter, not even that: modules that are not preloaded are missing), the network is open,
memory outside of address spaces is not bounded, and a program that its own user runs can signal the user's processes.

Resource limits hold in both. Programs share the kernel with all others, and what is wrong with it is theirs to use.
"""

import contextlib
import ctypes
import errno
import functools
import glob
import os
import signal
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
HIGH_ID = 2_000_000_000
"""Users from here on belong to nobody; each server that runs as root takes one."""
MAX_FILES = 1024
"""Files in a program's /tmp."""
NOBODY = 65534
SYSTEM_CALLS = {
    # machine: (AUDIT_ARCH, socket, then the refused ones: shmget msgget semget add_key request_key keyctl
    #           perf_event_open bpf userfaultfd io_uring_setup)
    "x86_64": (0xC000003E, 41, (29, 68, 64, 248, 249, 250, 298, 321, 323, 425)),
    "aarch64": (0xC00000B7, 198, (194, 186, 190, 217, 218, 219, 241, 280, 282, 425)),
}
SOCKETS = (1, 2, 10)
"""Families that the network namespace isolates: AF_UNIX, AF_INET, AF_INET6. AF_VSOCK would reach the hypervisor."""

# Names and numbers of linux/sched.h, mount.h, prctl.h, capability.h, seccomp.h and bpf_common.h.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
SYS_MOUNT_SETATTR, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 442, 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
LINUX_CAPABILITY_VERSION_3 = 0x20080522

SECCOMP_MODE_FILTER, LOAD, IF_EQUAL, IF_AT_LEAST = 2, 0x20, 0x15, 0x35
REFUSE, ALLOW = (0x06, 0, 0, 0x50000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library."""
    return ctypes.CDLL(None, use_errno=True)


def call(function: str, *args: int | bytes) -> None:
    """Call a function of the C library.

    Raises:
        OSError: if it fails.
    """
    arguments = [ctypes.c_long(arg) if isinstance(arg, int) else ctypes.c_char_p(arg) for arg in args]
    if getattr(libc(), function)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def control(option: int, value: int) -> None:
    """Set an attribute of this process."""
    call("prctl", option, value, 0, 0, 0)


def free_ids() -> tuple[int, int]:
    """User and group of programs: ones that nobody has if we may choose, else our own."""
    if os.geteuid() == 0:
        free = HIGH_ID + os.getpid()
        for line in Path("/proc/self/uid_map").read_text().splitlines():
            first, _, count = map(int, line.split())
            if first <= free < first + count:
                return free, free
    return os.geteuid(), os.getegid()


def become(user: int, group: int) -> None:
    """Change to another user for good."""
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def die_with(parent: int) -> None:
    """Be killed when the parent dies; a change of user undoes it."""
    control(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def descendants(pid: int) -> list[int]:
    """The processes that a process has forked, those that they forked, and so on."""
    found = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError):  # it ended
            for child in map(int, Path(path).read_text().split()):
                found += [child, *descendants(child)]
    return found


def send(number: int, pids: Iterable[int]) -> None:
    """Send a signal to those that still live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def remove(folder: str) -> None:
    """Remove a folder and all in it, whatever the permissions and however deep; nothing if it is not there.

    Walks by file descriptors, so that no path gets long and nothing recurs. No symbolic link is followed.

    Raises:
        OSError: if it belongs to somebody else, or is written to meanwhile.
    """
    if os.path.islink(folder) or not os.path.isdir(folder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder)
        return
    os.chmod(folder, 0o700)
    flags, names = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, []
    here = os.open(folder, flags)
    while True:
        inner, is_empty = None, True
        with os.scandir(here) as entries:
            for entry in entries:
                is_empty = False
                if entry.is_dir(follow_symlinks=False):
                    inner = entry.name
                    break
                os.unlink(entry.name, dir_fd=here)
        outer = here
        if inner is not None:
            os.chmod(inner, 0o700, dir_fd=outer)
            here = os.open(inner, flags, dir_fd=outer)
            names.append(inner)
            os.close(outer)
        elif is_empty:
            if not names:
                break
            here = os.open("..", flags, dir_fd=outer)
            os.close(outer)
            os.rmdir(names.pop(), dir_fd=here)
    os.close(here)
    os.rmdir(folder)


def drop_privileges() -> None:
    """Have no capability, and none to gain by executing a file."""
    control(PR_SET_NO_NEW_PRIVS, 1)
    call("capset", struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0), bytes(24))


def refuse_system_calls() -> None:
    """Refuse those that reach past the namespaces, keep memory that no limit counts, or that no program here needs.

    Raises:
        OSError: if the system permits no filter, or its machine is not among ours.
    """
    machine = os.uname().machine
    if machine not in SYSTEM_CALLS:
        raise OSError(f"no numbers of system calls for {machine}")
    architecture, socket, refused = SYSTEM_CALLS[machine]
    code = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, architecture), REFUSE]
    code += [(LOAD, 0, 0, 0), (IF_AT_LEAST, 0, 1, 1 << 30), REFUSE]  # other numbers for the same calls
    for number in refused:
        code += [(IF_EQUAL, 0, 1, number), REFUSE]
    code += [(IF_EQUAL, 0, len(SOCKETS) + 2, socket), (LOAD, 0, 0, 16)]
    code += [(IF_EQUAL, len(SOCKETS) - i, 0, family) for i, family in enumerate(SOCKETS)]
    code += [REFUSE, ALLOW]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in code))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct.pack("HP", len(code), ctypes.addressof(program)), 0, 0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def build_root() -> None:
    """Change the root of this mount namespace to a new one with the interpreter's libraries and an empty /tmp.

    The first new root holds the old one beside the second, so that no source is hidden, wherever it lies.

    Raises:
        OSError: if that is not permitted.
    """
    libraries = [*LIBRARIES, *sys.path]
    if sys.base_prefix not in ("/", "/usr"):
        libraries.append(sys.base_prefix + "/lib")
    paths = {path: os.path.realpath(path) for path in (*libraries, *DEVICES) if os.path.exists(path)}
    mount("", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    call("pivot_root", b"/tmp", b"/tmp/old")
    os.chdir("/")
    mount("tmpfs", "/new", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.mkdir("/new/tmp")
    for path in sorted(paths):
        if not any(path.startswith(outer + "/") for outer in paths):
            bind("/old" + paths[path], "/new" + path)
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/new", AT_RECURSIVE, attributes, len(attributes))
    os.chdir("/new")
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def bind(source: str, target: str) -> None:
    """Show a file or folder at another place too."""
    if os.path.isdir(source):
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT))
    mount(source, target, "", MS_BIND | MS_REC)


class Namespaces:
    """The strong tier: the server changes its root once, every program gets namespaces of its own."""

    def __init__(self) -> None:
        """Enter the new root.

        Raises:
            OSError: if the system does not permit it.
        """
        self.user, self.group = free_ids()
        self.changes_user = self.user != os.geteuid()
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.children = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY)
        if self.changes_user:
            call("unshare", CLONE_NEWNS)
        else:
            call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
            self.write("self/setgroups", "deny")
            self.write("self/uid_map", f"{self.user} {self.user} 1")
            self.write("self/gid_map", f"{self.group} {self.group} 1")
        build_root()

    def write(self, path: str, text: str) -> None:
        """Write to a file of the host's /proc."""
        file = os.open(path, os.O_WRONLY, dir_fd=self.proc)
        os.write(file, text.encode())
        os.close(file)

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """Where a program may write; its own, whatever the name."""
        yield "/tmp"

    def enter(self, folder: str, size: int) -> None:
        """Shut in a fork of the server: returns in process 1 of new namespaces, which is a child of that fork."""
        server = os.getppid()
        die_with(server)
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
        os.kill(os.getpid(), signal.SIGSTOP)  # until `admit` has named its user
        self.write("sys/user/max_user_namespaces", "0")
        if self.changes_user:
            become(NOBODY, NOBODY)
            die_with(server)
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=700,size={size},nr_inodes={MAX_FILES}")
        os.chdir(folder)
        drop_privileges()
        refuse_system_calls()
        judge = os.fork()
        if judge:
            os.waitpid(judge, 0)
            os._exit(0)
        control(PR_SET_PDEATHSIG, signal.SIGKILL)
        control(PR_SET_DUMPABLE, 0)  # the program runs as the same user: it must not read or write the judge's memory

    def admit(self, keeper: int) -> None:
        """Let a fork that waits in `enter` go on."""
        _, status = os.waitpid(keeper, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            self.write(f"{keeper}/uid_map", f"{NOBODY} {self.user} 1")
            self.write(f"{keeper}/gid_map", f"{NOBODY} {self.group} 1")
            os.kill(keeper, signal.SIGCONT)

    def max_processes(self, processes: int) -> int:
        """The resource limit at which a program has so many: keeper and judge count too."""
        return processes + 2

    def kill(self) -> None:
        """Kill our children: the judge is process 1, without which its namespace ends."""
        send(signal.SIGKILL, map(int, os.pread(self.children, 1 << 16, 0).split()))


class Rlimits:
    """The weak tier."""

    def __init__(self) -> None:
        self.user, self.group = free_ids()
        self.changes_user = self.user != os.geteuid()
        control(PR_SET_DUMPABLE, 0)  # a program run by the same user must not read or write our memory

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """Where a program may write and we look after it: in a temporary folder that is removed afterwards.

        It stands in one that is ours, or a program of another user could put a link in its place for us to follow.
        """
        ours = tempfile.mkdtemp(prefix=f"ladi-{os.getpid()}-")
        os.chmod(ours, 0o711)
        folder = f"{ours}/program"
        os.mkdir(folder, 0o700)
        os.chown(folder, self.user, self.group)
        try:
            yield folder
        finally:
            remove(ours)

    def enter(self, folder: str, size: int) -> None:
        """Shut in a fork of the server; `size` is not bounded."""
        server = os.getppid()
        die_with(server)
        os.chdir(folder)
        if self.changes_user:
            become(self.user, self.group)
            die_with(server)
        control(PR_SET_NO_NEW_PRIVS, 1)

    def admit(self, keeper: int) -> None:
        """Nothing to wait for."""

    def max_processes(self, processes: int) -> int:
        """The resource limit at which a program has so many: it counts all that its user runs, threads included."""
        running = 0
        for path in [] if self.changes_user else Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended
                if path.stat().st_uid == self.user:
                    running += len(os.listdir(path / "task"))
        return (
            running + processes + self.changes_user
        )  # the judge is among those running, unless it has yet to change its user

    def kill(self) -> None:
        """Kill all that is below us, once it is stopped.

        What is stopped forks no other and counts on; killed one by one, processes would be replaced by those left.
        """
        stopped, found = None, descendants(os.getpid())
        while found != stopped:
            send(signal.SIGSTOP, found)
            stopped, found = found, descendants(os.getpid())
        send(signal.SIGKILL, found)


TIERS = {"namespaces": Namespaces, "rlimits": Rlimits}
