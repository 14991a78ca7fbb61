"""The age of a channel's token is by our own clock, whatever the server's says."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace

import pytest
from asyncua import ua
from asyncua.common.connection import SecureConnection, TransportLimits
from asyncua.crypto.security_policies import SecurityPolicyNone

from edgeqc.plc.opcua_tokens import own_token_clock

BEHIND = dt.timedelta(hours=2)


def token(number: int) -> SimpleNamespace:
    """As a server whose clock is two hours behind issues it, for an hour."""
    created = dt.datetime.now(dt.UTC) - BEHIND
    issued = ua.ChannelSecurityToken(
        ChannelId=ua.UInt32(1), TokenId=ua.UInt32(number), CreatedAt=created, RevisedLifetime=ua.UInt32(3_600_000)
    )
    return SimpleNamespace(SecurityToken=issued, ServerNonce=b"")


def renewed() -> SecureConnection:
    """A channel whose token was renewed just now."""
    connection = SecureConnection(SecurityPolicyNone(), TransportLimits())
    connection.set_channel(token(1), ua.SecurityTokenRequestType.Issue, b"")
    connection.set_channel(token(2), ua.SecurityTokenRequestType.Renew, b"")
    connection.revolve_tokens()
    return connection


def test_an_answer_under_the_old_token_is_taken_after_a_renewal() -> None:
    own_token_clock()
    own_token_clock()
    renewed()._check_sym_header(ua.SymmetricAlgorithmHeader(TokenId=ua.UInt32(1)))


def test_a_token_that_really_is_old_is_refused() -> None:
    own_token_clock()
    connection = renewed()
    connection.prev_security_token.CreatedAt -= BEHIND
    with pytest.raises(ua.UaError, match="has timed out"):
        connection._check_sym_header(ua.SymmetricAlgorithmHeader(TokenId=ua.UInt32(1)))
