"""A system call filter (seccomp) for the processes that run a chat template.

A template that escapes from Jinja's sandbox can run Python code, but cannot reach files, the network, programs, other
processes or devices: every system call that is not listed fails with EPERM. The numbers below are for x86-64. There is
no filter on other machines, and on kernels without seccomp.
"""

import codecs
import ctypes
import errno
import importlib
import platform
import struct
import time

_MACHINE = platform.machine()
_libc = ctypes.CDLL(None)
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_X86_64 = 0xC000003E
"""Linux's AUDIT_ARCH_X86_64."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
"""BPF: load a word of the call's data, skip instructions unless the word equals a constant, return."""
_NUMBER_AT, _ARCH_AT = 0, 4
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000

_RENDERING = (
    *(0, 1, 3),  # read, write, close
    *(5, 7, 8),  # fstat, poll, lseek
    *(9, 10, 11, 12, 25, 28),  # mmap, mprotect, munmap, brk, mremap, madvise
    *(13, 14, 15, 131),  # rt_sigaction, rt_sigprocmask, rt_sigreturn, sigaltstack
    *(24, 202, 219),  # sched_yield, futex, restart_syscall
    *(35, 96, 228, 230),  # nanosleep, gettimeofday, clock_gettime, clock_nanosleep
    *(38, 39, 186, 318),  # setitimer, getpid, gettid, getrandom
    *(44, 45, 46, 47),  # sendto, recvfrom, sendmsg, recvmsg
    *(
        51,
        52,
        54,
        55,
        48,
    ),  # getsockname, getpeername, setsockopt, getsockopt, shutdown: of its two sockets
    *(60, 231),  # exit, exit_group
)
"""System calls that a child needs to render a conversation and answer."""
_SERVING = (
    *_RENDERING,
    *(72, 110),  # fcntl, getppid
    *(56, 61, 273, 334),  # clone (fork), wait4, set_robust_list, rseq
    157,  # prctl
)
"""Further calls that the renderer itself needs, to fork and confine children."""
_IMPORTED_LATE = ("jinja2.constants", "jinja2.debug", "pprint", "encodings.idna")
_CODECS = ("ascii", "latin-1", "unicode-escape", "raw-unicode-escape", "utf-8", "utf-16", "utf-32")
"""Modules and codecs that Jinja or templates load on first use, which the filter would prevent."""


def refuse_all_but_serving() -> None:
    """Filter this process and its children, permanently. Call it before a template is compiled."""
    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    for name in _CODECS:
        codecs.lookup(name)
    time.localtime()  # Reads the time zone's file.
    _install(_SERVING)


def refuse_all_but_rendering() -> None:
    """Filter a child's system calls before it renders."""
    _install(_RENDERING)


def _install(numbers: tuple[int, ...]) -> None:
    """Make every other call fail with EPERM, and end the process on a call of another architecture.

    Does nothing on kernels without support; then only the limits apply.
    """
    if _MACHINE != "x86_64":
        return
    program = [(_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _KILL)]
    program.append((_LOAD, 0, 0, _NUMBER_AT))
    for number in numbers:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _REFUSE))
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(header), 0, 0)
