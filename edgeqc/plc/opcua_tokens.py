"""How old a channel's security token is, by our own clock.

asyncua 2.1.0 holds the time that the server wrote into a token against this box's clock: where the server's is half an hour
behind, it took the answers that come under the old token for expired at each renewal (every 45 minutes), and cut the
connection.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from asyncua import ua
from asyncua.common.connection import SecureConnection


def own_token_clock() -> None:
    """Date tokens from when they came. Once per process is enough, again does no harm."""
    if SecureConnection.set_channel is not _set_channel:
        SecureConnection.set_channel = _set_channel  # type: ignore[method-assign, assignment]


_set: Final = SecureConnection.set_channel


def _set_channel(
    connection: SecureConnection, params: Any, request_type: ua.SecurityTokenRequestType, client_nonce: bytes
) -> None:
    params.SecurityToken.CreatedAt = dt.datetime.now(dt.UTC)
    _set(connection, params, request_type, client_nonce)
