"""A stranger's program (a chat template) runs in a child process, with so much time and memory and no more.

A fork, unlike judges/child.py: what runs is an object of this process, which no other could be handed, and once.
"""

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rto_fast.files.text import one_line


def in_child(work: Callable[[], Any], what: str, fix: str, *, seconds: float, megabytes: int) -> Any:
    """work() as JSON sees it, computed by a forked child.

    seconds    of processor time, after which the child is killed, whatever it does
    megabytes  more than this process has now

    Raises ValueError, `what` cannot be used, with the reason (it needed more, died, or what work() raised) and the
    `fix`. Where there is no fork (Windows) it runs here. Cost: one fork, some milliseconds.
    """
    if not hasattr(os, "fork"):
        return work()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # the child touches none of the other threads' locks: it runs Python that only computes
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        _answer(work, writing, seconds, megabytes)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            said = pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    problem = f"it needs more than {megabytes} MiB or breaks the interpreter (exit status {status})"
    if status == -signal.SIGPROF:
        problem = f"it does not end within {seconds:g} s"
    answer = {"error": problem} if status else json.loads(said)
    if "error" in answer:
        raise ValueError(f"{what} cannot be used: {answer['error']}; {fix}")
    return answer["result"]


def _answer(work: Callable[[], Any], writing: int, seconds: float, megabytes: int) -> None:
    """In the child: never returns."""
    status = 1
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        _bound_memory(megabytes)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library that breaks says so there, in many lines
        try:
            answer = {"result": work()}
        # a program of a stranger may raise anything
        except Exception as error:
            answer = {"error": one_line(str(error) or type(error).__name__, 300)}
        with open(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        status = 0
    finally:
        os._exit(status)


def _bound_memory(megabytes: int) -> None:
    size = Path("/proc/self/statm")
    if size.exists():
        import resource

        now = int(size.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = now + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
