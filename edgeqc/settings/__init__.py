"""The configuration: its shape, its limits, and nothing else. Loaded once, handed down.

Every key carries its unit. A field's description is what `edgeqc config schema` shows in an editor.
"""

from edgeqc.settings.base import Model, Name, Node, Secret
from edgeqc.settings.box import Settings
from edgeqc.settings.camera import (
    CameraBase,
    CameraSettings,
    GigeCameraSettings,
    OpencvCameraSettings,
    ReplayCameraSettings,
    TriggerSettings,
    TriggerSource,
)
from edgeqc.settings.office import ArchiveSettings, JournalSettings, JournalSync, MqttSettings, TlsSettings
from edgeqc.settings.plc import (
    HandshakeSettings,
    ModbusPlcSettings,
    ModbusRegisters,
    NoPlcSettings,
    OpcuaEndpoint,
    OpcuaNodes,
    OpcuaPlcSettings,
    OpcuaSecurity,
    PlcSettings,
)
from edgeqc.settings.recipe import ChangeoverSettings, EngineSettings, RecipeSettings, RegionMode, RegionSettings
from edgeqc.settings.station import ImageRules, StationSettings
from edgeqc.settings.tags import (
    ModbusTagSource,
    OpcuaTagSource,
    ReplayTagSource,
    TagSettings,
    TagSourceBase,
    TagSourceSettings,
)

__all__ = [
    "ArchiveSettings",
    "CameraBase",
    "CameraSettings",
    "ChangeoverSettings",
    "EngineSettings",
    "GigeCameraSettings",
    "HandshakeSettings",
    "ImageRules",
    "JournalSettings",
    "JournalSync",
    "ModbusPlcSettings",
    "ModbusRegisters",
    "ModbusTagSource",
    "Model",
    "MqttSettings",
    "Name",
    "NoPlcSettings",
    "Node",
    "OpcuaEndpoint",
    "OpcuaNodes",
    "OpcuaPlcSettings",
    "OpcuaSecurity",
    "OpcuaTagSource",
    "OpencvCameraSettings",
    "PlcSettings",
    "RecipeSettings",
    "RegionMode",
    "RegionSettings",
    "ReplayCameraSettings",
    "ReplayTagSource",
    "Secret",
    "Settings",
    "StationSettings",
    "TagSettings",
    "TagSourceBase",
    "TagSourceSettings",
    "TlsSettings",
    "TriggerSettings",
    "TriggerSource",
]
