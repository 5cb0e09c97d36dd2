"""`edm-fast` in children of a process that has imported it already: a run costs no import of torch.

That process is one of its own because the tests' may hold threads, which a fork does not carry over. Nothing here waits
without a limit, and a server whose tests are gone ends with its children.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import torch

from edm_fast.cli import main

LIMIT_S = 200.0


class Commands:
    """Starts runs of `edm-fast`; to be closed."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, servers = context.Pipe()
        self._server = context.Process(target=_serve, args=(servers,), daemon=True)
        self._server.start()
        servers.close()
        self.ask("ready")

    def ask(self, *request: Any) -> Any:
        """The server's answer."""
        self._pipe.send(request)
        assert self._pipe.poll(2 * LIMIT_S), f"no answer to {request} in {2 * LIMIT_S} s"
        return self._pipe.recv()

    def start(
        self,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        first: Callable[[], None] | None = None,
    ) -> Run:
        """A run with the arguments and more of the environment, which calls `first` at its beginning."""
        return Run(self, self.ask("start", [*map(str, arguments)], dict(environment or {}), first))

    def close(self) -> None:
        self._pipe.close()
        self._server.join(LIMIT_S)
        self._server.kill()


@contextlib.contextmanager
def forked_commands() -> Iterator[Commands]:
    commands = Commands()
    try:
        yield commands
    finally:
        commands.close()


class Run:
    """A process. Its id is its own until it was seen to end."""

    def __init__(self, commands: Commands, pid: int) -> None:
        self._commands = commands
        self._pid = pid
        self._status: int | None = None
        self.output = ""

    def ended(self, within_s: float = 0) -> bool:
        if self._status is None and (answer := self._commands.ask("wait", self._pid, within_s)) is not None:
            self._status, self.output = answer
        return self._status is not None

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        if self._status is None:
            os.kill(self._pid, signal_number)

    def status(self) -> int:
        """Waits for the end: the exit status, or -N after signal N."""
        if not self.ended(LIMIT_S):
            self.kill(signal.SIGABRT)  # it says where it was
            if not self.ended(10):
                self.kill()
                self.ended(10)
            raise AssertionError(f"still running after {LIMIT_S} s, having said:\n{self.output}")
        assert self._status is not None
        return self._status


def _serve(pipe: Connection) -> None:
    """Answers requests until their other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # A child is as one that was not started by this package: locks that it makes leave no trace outside it.
    multiprocessing.set_start_method("fork", force=True)
    outputs: dict[int, BinaryIO] = {}
    try:
        for request, *arguments in _requests(pipe):
            if request == "start":
                output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the run was seen to end
                pid = os.fork()
                if pid == 0:
                    pipe.close()
                    _run(output, *arguments)
                outputs[pid] = output
                pipe.send(pid)
            elif request == "wait":
                pid, within_s = arguments
                status = _wait(pid, within_s)
                pipe.send(None if status is None else (status, _said(outputs.pop(pid))))
            else:
                pipe.send(None)
    finally:
        for pid in outputs:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _requests(pipe: Connection) -> Iterator[Any]:
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            yield pipe.recv()


def _wait(pid: int, within_s: float) -> int | None:
    deadline = time.monotonic() + within_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.001)


def _said(output: BinaryIO) -> str:
    with output:
        output.seek(0)
        return output.read().decode(errors="replace")


def _run(
    output: BinaryIO, arguments: Sequence[str], environment: Mapping[str, str], first: Callable[[], None] | None
) -> None:
    """The child's whole life."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        faulthandler.enable()
        os.environ.update(environment)
        if first is not None:
            first()
        main(arguments, prog_name="edm-fast")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
