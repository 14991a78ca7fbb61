"""What people ask of alarms, over MQTT and over the box's own socket: read, carried out by the archive, answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from edgeqc.core.alarm import Verb
from edgeqc.office import payloads
from edgeqc.office.alarms import AlarmCommand, RefusedCommandError, parse_command
from edgeqc.office.books import Asked
from edgeqc.office.courier import Message
from edgeqc.office.mqtt import COMMAND_BYTES, Inbound

SOCKET_NAME: Final = "office.sock"
"""In the state directory; whoever may open it may answer alarms."""
_PATIENCE_S: Final = 5.0
"""An archive that has not written the command by then is stuck; it will be carried out when it is not."""
_PEER: Final = struct.Struct("iII")
"""Linux's ucred: pid, uid, gid."""


class Commands:
    """Takes commands on the loop and on the outbox's thread; answers them in `turn`, on the loop."""

    def __init__(
        self, put: Callable[[Asked], None], reply: Callable[[Message], None], *, node: str, verbs: Sequence[Verb]
    ) -> None:
        """Give commands to `put` (the archive) and answers to `reply` (the broker); over MQTT only `verbs` are taken."""
        self.taken = 0
        self.refused = 0
        self._put = put
        self._reply = reply
        self._node = node
        self._verbs = frozenset(verbs)
        self._pending: list[_Pending] = []
        self._log = structlog.get_logger("edgeqc.commands")

    def inbound(self, message: Inbound) -> None:
        """Take what came over MQTT. On the outbox's thread."""
        verb = message.topic.removeprefix(payloads.COMMAND)
        pending = _Pending(
            verb=verb,
            transaction=None,
            reply_to=_safe_topic(message.response_topic),
            correlation=message.correlation,
            until_s=time.monotonic() + _PATIENCE_S,
        )
        try:
            if message.retained:
                raise RefusedCommandError("a retained message is no command: nobody knows when it was meant")  # noqa: TRY301
            if len(message.payload) > COMMAND_BYTES:
                raise RefusedCommandError(f"payload: over {COMMAND_BYTES} bytes")  # noqa: TRY301
            fields = _decoded(message.payload)
            transaction = fields.get("transaction") if isinstance(fields, dict) else None
            pending.transaction = transaction[:100] if isinstance(transaction, str) else None
            if verb not in self._verbs:
                raise RefusedCommandError(f"verb: {verb[:40]} is not in mqtt.commands of this box")  # noqa: TRY301
            pending.answer = self.give(parse_command(verb, fields, via="mqtt"))
        except Exception as exc:  # noqa: BLE001 - a stranger's words must not end the outbox's thread, and the office with it
            self.refused += 1
            pending.answer.set_result(self.refusal(exc))
        self._pending.append(pending)

    def give(self, command: AlarmCommand) -> Future[dict[str, Any]]:
        """Have a command carried out; the answer comes once it is on the disk. Any thread."""
        self.taken += 1
        self._log.info("alarm_command", verb=command.verb.value, id=command.id, by=command.by, via=command.via)
        answer: Future[dict[str, Any]] = Future()
        self._put(Asked(command=command, answer=answer, wall_ns=time.time_ns(), mono_ns=time.monotonic_ns()))
        return answer

    def refusal(self, fault: Exception) -> dict[str, Any]:
        """The answer to a command that is not carried out; what nobody thought of is logged whole."""
        if isinstance(fault, RefusedCommandError):
            return _error("refused", str(fault))
        self._log.error("command_failed", exc_info=fault)
        return _error("refused", f"this cannot be carried out: {type(fault).__name__}, see the box's log")

    def turn(self) -> None:
        """Answer what is done, and what takes too long."""
        now_s = time.monotonic()
        for pending in list(self._pending):
            if pending.answer.done():
                said = pending.answer.result()
            elif now_s > pending.until_s:
                said = _error("pending", "the archive takes no records just now; it will be done when it does")
            else:
                continue
            self._pending.remove(pending)
            self._reply(self._message(pending, said))

    def _message(self, pending: _Pending, said: dict[str, Any]) -> Message:
        body = {
            "schema": "edgeqc.answer/1",
            "ts": payloads.rfc3339(time.time_ns()),
            "node": self._node,
            "verb": pending.verb[:40],
            "transaction": pending.transaction,
            "status": said["status"],
            "data": said.get("data", {}),
            "error": said.get("error"),
        }
        return Message(
            topic=f"{payloads.COMMAND}{pending.verb}/result",
            payload=payloads.encode(body),
            retain=False,
            reply_to=pending.reply_to,
            correlation=pending.correlation,
        )


class CommandSocket:
    """The box's own way in: one JSON object a line, `verb` in it, one answer a line. On the loop."""

    def __init__(self, commands: Commands, state_dir: Path) -> None:
        self._commands = commands
        self._state_dir = state_dir
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; a socket that a killed office left is replaced. OSError."""
        with _short_path(self._state_dir) as folder:
            path = folder / SOCKET_NAME
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(str(path))
                path.chmod(0o660)
            except OSError:
                listener.close()
                raise
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=COMMAND_BYTES)

    async def close(self) -> None:
        """End it and remove its file."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                (self._state_dir / SOCKET_NAME).unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(2 * _PATIENCE_S):
                line = await reader.readline()
                said = await self._answer(line, writer.get_extra_info("socket"))
                writer.write(json.dumps(said).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            pass  # whoever asked is gone, or sends no lines
        finally:
            writer.close()

    async def _answer(self, line: bytes, connection: Any) -> dict[str, Any]:
        try:
            fields = _decoded(line)
            if not isinstance(fields, dict):
                raise RefusedCommandError("a JSON object is needed")  # noqa: TRY301
            login = _login(connection)
            user = str(fields.get("user") or "").strip()
            fields["user"] = user if user in {"", login} else f"{user} ({login})"
            fields["user"] = fields["user"] or login
            command = parse_command(str(fields.get("verb", "")), fields, via="console")
            answer = asyncio.wrap_future(self._commands.give(command))
        except Exception as exc:  # noqa: BLE001 - whoever asked gets an answer whatever it was
            return self._commands.refusal(exc)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await asyncio.shield(answer)
        except TimeoutError:
            return _error("pending", "the archive takes no records just now; it will be done when it does")


def ask(state_dir: Path, fields: dict[str, Any], *, timeout_s: float = 2 * _PATIENCE_S) -> dict[str, Any]:
    """Give a command to the office that serves this state directory, and its answer. OSError where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        with _short_path(state_dir) as folder:
            connection.connect(str(folder / SOCKET_NAME))
        connection.sendall(json.dumps(fields).encode() + b"\n")
        with connection.makefile("rb") as answers:
            said: dict[str, Any] = json.loads(
                answers.readline() or b'{"status": "error", "error": {"message": "no answer"}}'
            )
    return said


@dataclass(slots=True, kw_only=True)
class _Pending:
    verb: str
    transaction: str | None
    reply_to: str | None
    correlation: bytes | None
    until_s: float
    answer: Future[dict[str, Any]] = field(default_factory=Future)


@contextlib.contextmanager
def _short_path(folder: Path) -> Iterator[Path]:
    """The folder under a name that is never too long for a socket's address (108 bytes)."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _login(connection: Any) -> str:
    """Who is at the other end, as the kernel knows it."""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _decoded(payload: bytes) -> object:
    try:
        fields: object = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise RefusedCommandError(f"payload: is no JSON: {str(exc)[:100]}") from exc
    return fields


def _safe_topic(topic: str | None) -> str | None:
    """A response topic that may be published on; None: our own is used."""
    usable = topic and len(topic) <= _TOPIC_CHARACTERS and not set(topic) & set("+#\0") and not topic.startswith("$")
    return topic if usable else None


_TOPIC_CHARACTERS: Final = 256


def _error(code: str, message: str) -> dict[str, Any]:
    return {"status": "error", "error": {"code": code, "message": message}}
