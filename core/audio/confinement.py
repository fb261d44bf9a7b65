"""Processes that read what anybody may have sent: they compute, and can do nothing else.

FFmpeg reads a hundred formats in C. A file that takes one of its decoders over has the rights of
that decoder's process, so it should have none: what it works on reaches it as an open file or by a
socket that is already there. Linux' Landlock denies it every file but Python's modules, TCP,
signals to other processes and looks into them (docs.kernel.org/userspace-api/landlock.html);
seccomp denies it new sockets of any kind. Both need no privilege, and are for good.

By ctypes, since what is needed of either is five calls whose numbers and structures never change.
"""

import ctypes
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from enum import Enum

from audiofuse.core.cores import thread_limits

# Of the environment, what Python needs to start as it did here. All else may be a secret.
NEEDED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")

MODULES = ("stdlib", "platstdlib", "purelib", "platlib")  # some are imported late

NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # of prctl: linux/prctl.h, linux/seccomp.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, alike on all architectures
VERSION_ONLY = 1
PATH_BENEATH = 1
READ = 0b1100  # files and folders
# linux/landlock.h. What is handled and not allowed again is denied.
FILES = {1: 13, 2: 14, 3: 15, 5: 16}  # kinds of access to files that a version of Landlock knows
TCP_VERSION, TCP = 4, 0b11  # to bind and to connect
SCOPE_VERSION, SCOPE = 6, 0b11  # abstract sockets, and signals, of processes beyond this one

IO_URING_SETUP = 425  # which makes sockets, too
# The architecture as audit calls it, and the number of socket(2) there.
ARCHITECTURES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
FIRST_OF_X32 = 0x40000000  # another numbering of the same calls
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
NUMBER, ARCHITECTURE = 0, 4  # where they are in struct seccomp_data
ALLOW, DENY = 0x7FFF0000, 0x00050001  # EPERM


class Confinement(Enum):
    """How far a process has been confined."""

    FULL = "no files, no network"
    SOCKETS = "no new sockets"  # Landlock is missing, or switched off
    NONE = "not at all"


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "tcp", "scope")]


class _Rule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("first", ctypes.POINTER(_Instruction))]


def how_far() -> Confinement:
    """Return how far processes are confined on this machine: one tries. ``OSError`` if none can."""
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", __spec__.name], env=bare_environment(),
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return Confinement[done.stdout.strip()] if not done.returncode else Confinement.NONE


def bare_environment() -> Mapping[str, str]:
    """Return the environment of a process that is to be confined: one thread, and no secret."""
    return {name: os.environ[name] for name in NEEDED if name in os.environ} | thread_limits(1)


def confine() -> Confinement:
    """Give up all rights that this process can do without, for good; tell how far that went.

    Called while it has one thread: others would keep theirs. What it works on must be open by then,
    or come over a socket.
    """
    if sys.platform != "linux":
        return Confinement.NONE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    sockets, files = _deny_sockets(libc), _deny_files(libc)
    if sockets and files:
        return Confinement.FULL
    return Confinement.SOCKETS if sockets else Confinement.NONE


def _deny_files(libc: ctypes.CDLL) -> bool:
    version = libc.syscall(CREATE_RULESET, None, 0, VERSION_ONLY)
    if version < 1:
        return False
    kinds = max(count for since, count in FILES.items() if since <= version)
    ruleset = _Ruleset(
        files=(1 << kinds) - 1,
        tcp=TCP if version >= TCP_VERSION else 0,
        scope=SCOPE if version >= SCOPE_VERSION else 0,
    )
    size = ctypes.sizeof(ruleset)  # a kernel that knows less of it wants the rest to be zero
    descriptor = libc.syscall(CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    if descriptor < 0:
        return False
    try:
        folders = {sysconfig.get_path(name) for name in MODULES}
        # All, before it is for good: without its modules a process could not do its work.
        is_allowed = all(_allow(libc, descriptor, each) for each in folders)
        return is_allowed and libc.syscall(RESTRICT_SELF, descriptor, 0) == 0
    finally:
        os.close(descriptor)


def _allow(libc: ctypes.CDLL, ruleset: int, folder: str) -> bool:
    opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = ctypes.byref(_Rule(READ, opened))
        return bool(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0) == 0)
    finally:
        os.close(opened)


def _deny_sockets(libc: ctypes.CDLL) -> bool:
    if platform.machine() not in ARCHITECTURES:
        return False
    architecture, new_socket = ARCHITECTURES[platform.machine()]
    # Code, value, and how many to leave out if it is true, and if it is not.
    steps = [
        (LOAD, ARCHITECTURE, 0, 0),
        (IF_EQUAL, architecture, 0, 4),  # calls by another numbering are denied
        (LOAD, NUMBER, 0, 0),
        (IF_EQUAL, new_socket, 2, 0),
        (IF_EQUAL, IO_URING_SETUP, 1, 0),
        (IF_AT_LEAST, FIRST_OF_X32, 0, 1),
        (RETURN, DENY, 0, 0),
        (RETURN, ALLOW, 0, 0),
    ]
    filled = [_Instruction(code, true, false, value) for code, value, true, false in steps]
    program = _Program(len(steps), (_Instruction * len(steps))(*filled))
    return bool(libc.prctl(SECCOMP, FILTER, ctypes.byref(program), 0, 0) == 0)


if __name__ == "__main__":
    sys.stdout.write(confine().name)
