from __future__ import annotations

import base64
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.core.nodeid import NodeKind, NodeName, parse

GUID = "09087e75-8e5e-499b-954f-f2a9603db28a"
identifiers = st.one_of(
    st.tuples(st.just(NodeKind.NUMERIC), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(NodeKind.STRING), st.text()),
    st.tuples(st.just(NodeKind.GUID), st.uuids()),
    st.tuples(st.just(NodeKind.OPAQUE), st.binary()),
)
namespaces = st.one_of(st.integers(0, 2**16 - 1), st.text(min_size=1))


@pytest.mark.parametrize(
    ("text", "namespace", "kind", "identifier"),
    [
        ("i=2258", 0, NodeKind.NUMERIC, 2258),
        ("ns=2;i=5", 2, NodeKind.NUMERIC, 5),
        ('ns=3;s="DB1"."Part;No"', 3, NodeKind.STRING, '"DB1"."Part;No"'),
        (f"ns=1;g={GUID}", 1, NodeKind.GUID, uuid.UUID(GUID)),
        ("ns=1;b=M/RbKA==", 1, NodeKind.OPAQUE, base64.b64decode("M/RbKA==")),
        ("nsu=urn:plant:line%3B3;s=Part", "urn:plant:line;3", NodeKind.STRING, "Part"),
    ],
)
def test_each_form_is_understood(text, namespace, kind, identifier):
    assert parse(text) == NodeName(namespace=namespace, kind=kind, identifier=identifier)


@given(namespaces, identifiers)
def test_what_is_written_is_read_back(namespace, identifier):
    kind, value = identifier
    name = NodeName(namespace=namespace, kind=kind, identifier=value)
    if not (kind is NodeKind.STRING and value != value.rstrip()):  # blanks at the end of a line are not kept
        assert parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    ["", "Part", "ns=2", "ns=x;i=1", "ns=70000;i=1", "i=-1", "i=4294967296", "g=1", "ns=1;b=%", "x=1", "nsu=;i=1"],
)
def test_what_is_no_nodeid_is_refused_with_what_is_wrong(text):
    with pytest.raises(
        ValueError, match=r"NodeId is written|is no number|is no GUID|not base64|names no namespace|behind"
    ):
        parse(text)


@given(st.text())
def test_any_text_is_a_nodeid_or_a_value_error(text):
    try:
        name = parse(text)
    except ValueError:
        return
    assert parse(str(name)) == name
