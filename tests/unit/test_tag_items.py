"""What an OPC UA server is asked to monitor."""

from __future__ import annotations

from typing import Any

import pytest
from asyncua import ua

from edgeqc.settings import OpcuaTagSource
from edgeqc.sim.tagsink import TagRecorder
from edgeqc.tags.items import MonitoredItems
from edgeqc.tags.reading import Readings


@pytest.mark.parametrize(("fields", "filtered"), [({}, True), ({"stuck_s": 3600}, False)])
def test_a_dead_band_is_the_servers_only_where_nobody_must_hear_that_the_sensor_moves(
    fields: dict[str, Any], filtered: bool
) -> None:
    settings = OpcuaTagSource.model_validate(
        {
            "type": "opcua",
            "name": "press",
            "url": "opc.tcp://127.0.0.1:1",
            "security": "none",
            "tags": [{"name": "oil", "node": "i=1", "deadband": 0.2, **fields}],
        }
    )
    items = MonitoredItems(settings, Readings(settings.name, settings.tags), TagRecorder(["oil"]))
    items._nodes = [ua.NodeId(1)]
    request = items._request(0, filtered=True)
    assert isinstance(request.RequestedParameters.Filter, ua.DataChangeFilter) is filtered
