"""A process of the simulated line, seen from outside: begun, told, frozen, killed, and started again at the same place."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from typing import Final, Self

from edgeqc.errors import PeerError, PeerTimeoutError

READY_S: Final = 30.0
"""Python and its libraries take a second to start on a free core, an OPC UA server three; more on a busy one."""
_END_S: Final = 5.0


class Peer:
    """Says `READY ...` on its stdout once clients can connect, and takes orders line by line on its stdin.

    A kind of peer says by `command` what is started and by `told_ready` what it learns from the line.
    """

    def __init__(self, name: str) -> None:
        """Nothing runs before `begin`. `name` is for messages."""
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""

    def command(self) -> list[str]:
        """Program and arguments of the next start."""
        raise NotImplementedError

    def told_ready(self, words: list[str]) -> None:
        """It serves; `words` stood behind READY."""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process; PeerError where there is none."""
        if self._process is None:
            raise PeerError(self._name, "is not running")
        return self._process

    @property
    def pid(self) -> int:
        """Of the running process; PeerError where there is none."""
        return self.process.pid

    def begin(self) -> None:
        """Start the process and wait for nothing, so that several can start at once; `ready` has to follow."""
        if self._process is not None:
            raise PeerError(self._name, "runs already")
        self._said = b""
        self._process = subprocess.Popen(  # noqa: S603 - a program of the simulated line
            self.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ready(self) -> None:
        """Return once clients can connect; PeerError where it does not come to that, and then nothing runs."""
        try:
            self.told_ready(self.wait("READY", READY_S).split()[1:])
        except PeerError:
            self.kill()
            raise

    def start(self) -> Self:
        """Start, at the place of the last time where there was one; return once clients can connect."""
        self.begin()
        self.ready()
        return self

    def stop(self) -> None:
        """Have it hang up and end: SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Vanish as a pulled plug does: SIGKILL."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Hang with all connections open: SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`: SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Be done with it: killed, where it runs."""
        self.kill()

    def restart(self) -> None:
        """Stop and serve again at the same place."""
        self.stop()
        self.start()

    def tell(self, line: str) -> None:
        """Give it an order."""
        stdin = self.process.stdin
        if stdin is not None:
            stdin.write(f"{line}\n".encode())
            stdin.flush()

    def wait(self, word: str, timeout_s: float) -> str:
        """Read what it says until a line begins with `word`; that line. PeerTimeoutError, or PeerError where it ended."""
        stdout = self.process.stdout
        if stdout is None:
            raise PeerError(self._name, "does not talk")
        until = time.monotonic() + timeout_s
        while True:
            line, newline, rest = self._said.partition(b"\n")
            if newline:
                self._said = rest
                if line.startswith(word.encode()):
                    return line.decode()
                continue
            if not select.select([stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise PeerTimeoutError(self._name, f"did not say {word} within {timeout_s:g} s")
            some = os.read(stdout.fileno(), 4096)
            if not some:
                self.process.wait(_END_S)  # its exit code is to be its own
                raise PeerError(self._name, f"ended before it said {word}")
            self._said += some

    def __enter__(self) -> Self:
        try:
            return self.start()
        except PeerError:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with process:  # closes the pipes
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # a frozen one would not see the signal
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
