"""The simulated PLC's OPC UA server: asyncua, with one variable for each node of the handshake."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from asyncua import ua
from asyncua.common.callback import CallbackType, ServerItemCallback
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.server import Server
from asyncua.server.user_managers import UserManager

from edgeqc.plc import opcua_session
from edgeqc.plc.registers import ResultImage, Status, TriggerImage
from edgeqc.settings import OpcuaEndpoint

URI: Final = "urn:edgeqc:sim:plc"
NODES: Final[dict[str, tuple[str, ua.VariantType, bool | int | float | str]]] = {
    "trigger": ("Trigger", ua.VariantType.UInt32, 0),
    "part_id": ("PartId", ua.VariantType.String, ""),
    "result_sequence": ("ResultSequence", ua.VariantType.UInt32, 0),
    "result_part_id": ("ResultPartId", ua.VariantType.String, ""),
    "result_pass": ("ResultPass", ua.VariantType.Boolean, False),
    "result_fail": ("ResultFail", ua.VariantType.Boolean, False),
    "result_code": ("ResultCode", ua.VariantType.UInt16, 0),
    "result_score": ("ResultScore", ua.VariantType.Float, 0.0),
    "busy": ("Busy", ua.VariantType.Boolean, False),
    "ready": ("Ready", ua.VariantType.Boolean, False),
    "fault": ("Fault", ua.VariantType.Boolean, False),
    "heartbeat": ("Heartbeat", ua.VariantType.UInt16, 0),
    "result_valid": ("ResultValid", ua.VariantType.Boolean, False),
    "overrun": ("Overrun", ua.VariantType.Boolean, False),
    "stop": ("Stop", ua.VariantType.Boolean, False),
    "trigger_ack": ("TriggerAck", ua.VariantType.UInt32, 0),
    "waiting": ("ResultsWaiting", ua.VariantType.UInt16, 0),
    "result_ack": ("ResultAck", ua.VariantType.UInt32, 0),
    "plc_heartbeat": ("PlcHeartbeat", ua.VariantType.UInt16, 0),
    "recipe": ("Recipe", ua.VariantType.UInt16, 0),
}
PLC_WRITES: Final = ("trigger", "part_id", "result_ack", "plc_heartbeat", "recipe")
"""What the PLC says; everything else is the daemon's to write."""
"""Key in `plc.nodes` of the configuration: name, type and first value."""


def node_text(name: str) -> str:
    """The NodeId of a key of NODES, as the configuration gives it."""
    return f"ns=2;s=Line.{NODES[name][0]}"


class OpcuaPlc:
    """Holds the variables; tells each result write at the moment it was applied."""

    def __init__(
        self,
        on_write: Callable[[ResultImage, int], None],
        *,
        pki: Path | None = None,
        user: str = "",
        password: str = "",
    ) -> None:
        """With `pki`, only Basic256Sha256 SignAndEncrypt is offered; the certificate is made in that folder's pki/."""
        self._on_write = on_write
        self._pki = pki
        self._login = (user, password)
        self._server = Server(user_manager=_OneUser(user, password))
        self._ids = {name: ua.NodeId.from_string(node_text(name)) for name in NODES}
        self._names = {node: name for name, node in self._ids.items()}
        self._values: dict[str, Any] = {name: first for name, (_, _, first) in NODES.items()}

    async def start(self, port: int, says: TriggerImage) -> None:
        """Serve on 127.0.0.1, the trigger nodes as given; clients can connect when it returns."""
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        server = self._server
        await server.init()
        server.set_endpoint(f"opc.tcp://127.0.0.1:{port}")
        if self._pki is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        else:
            endpoint = OpcuaEndpoint(url=f"opc.tcp://127.0.0.1:{port}")
            identity = opcua_session.own_identity(endpoint, peer="sim", state_dir=self._pki)
            await server.set_application_uri(identity.application_uri)
            await server.load_certificate(str(identity.certificate))
            await server.load_private_key(str(identity.private_key))
            server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
        if self._login[0]:
            server.set_identity_tokens([ua.UserNameIdentityToken])
        space = await server.register_namespace(URI)
        folder = await server.nodes.objects.add_object(ua.NodeId.from_string(f"ns={space};s=Line"), "Line")
        for name, (shown, kind, first) in NODES.items():
            node = await folder.add_variable(self._ids[name], shown, first, kind)
            if name not in PLC_WRITES:
                await node.set_writable()
        await self.show(says)
        server.subscribe_server_callback(CallbackType.PostWrite, self._written)
        await server.start()

    async def show(self, says: TriggerImage) -> None:
        """Put what has changed into the nodes that the PLC writes; the counter that announces a part last."""
        values = {
            "recipe": says.recipe,
            "plc_heartbeat": says.heartbeat & 0xFFFF,
            "result_ack": says.ack,
            "part_id": says.part_id,
            "trigger": says.counter & 0xFFFF_FFFF,
        }
        for name, value in values.items():
            if self._values[name] != value:
                self._values[name] = value
                await self._server.write_attribute_value(
                    self._ids[name], ua.DataValue(ua.Variant(value, NODES[name][1]))
                )

    async def refuse(self, on: bool) -> None:
        """Make the result nodes read-only, or writable again."""
        for name in NODES:
            if name not in PLC_WRITES:
                await self._server.get_node(self._ids[name]).set_writable(not on)

    async def stop(self) -> None:
        """Hang up."""
        await self._server.stop()

    def _written(self, event: ServerItemCallback, _service: object) -> None:
        """One Write request was applied."""
        now_ns = time.monotonic_ns()
        if not event.is_external:
            return
        for item, status in zip(event.request_params.NodesToWrite, event.response_params, strict=True):
            name = self._names.get(item.NodeId)
            if name is not None and status.is_good():
                self._values[name] = item.Value.Value.Value
        if all(status.is_good() for status in event.response_params):
            self._on_write(_image(self._values), now_ns)


def _image(values: dict[str, Any]) -> ResultImage:
    """The result as the Modbus block has it."""
    status = Status(0)
    for name, bit in (
        ("result_pass", Status.PASS),
        ("result_fail", Status.REJECT),
        ("ready", Status.READY),
        ("busy", Status.BUSY),
        ("fault", Status.FAULT),
        ("overrun", Status.OVERRUN),
        ("stop", Status.STOP),
        ("result_valid", Status.RESULT_VALID),
    ):
        if values[name]:
            status |= bit
    return ResultImage(
        sequence=values["result_sequence"],
        status=status,
        code=values["result_code"],
        heartbeat=values["heartbeat"],
        score=values["result_score"],
        part_id=values["result_part_id"] or "",
        trigger_ack=values["trigger_ack"],
        waiting=values["waiting"],
    )


class _OneUser(UserManager):
    """Lets one user in, or everybody where no name is given."""

    def __init__(self, name: str, password: str) -> None:
        self._login = (name, password)

    def get_user(
        self,
        iserver: object,  # noqa: ARG002 - asyncua's interface
        username: str | None = None,
        password: str | None = None,
        certificate: object = None,  # noqa: ARG002 - asyncua passes it by name
    ) -> User | None:
        """Say who that is, None for a stranger."""
        if not self._login[0] or (username, password) == self._login:
            return User(role=UserRole.User, name=username or "anyone")
        return None
