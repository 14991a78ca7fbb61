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
from edgeqc.settings.gpu import GpuSettings
from edgeqc.settings.listener import Listener
from edgeqc.settings.machine import MachineAlarmSettings, MachineSettings
from edgeqc.settings.office import ArchiveSettings, JournalSettings, JournalSync, MqttSettings, TlsSettings
from edgeqc.settings.plc import (
    HandshakeSettings,
    ModbusPlcSettings,
    ModbusRegisters,
    ModbusServerPlcSettings,
    NoPlcSettings,
    OpcuaEndpoint,
    OpcuaNodes,
    OpcuaPlcSettings,
    OpcuaSecurity,
    PlcSettings,
)
from edgeqc.settings.recipe import (
    ChangeoverSettings,
    EngineSettings,
    RecipeSettings,
    RegionMode,
    RegionSettings,
    ViewSettings,
)
from edgeqc.settings.server import (
    Command,
    ModbusServerSettings,
    OpcuaServerSettings,
    Role,
    ServerSettings,
    ServerUser,
)
from edgeqc.settings.station import ImageRules, StationSettings
from edgeqc.settings.tags import (
    ConditionSettings,
    DerivedTagSettings,
    DerivedTagSource,
    GridSettings,
    HistorySettings,
    ModbusTagSource,
    OpcuaTagSource,
    ReplayTagSource,
    StateSource,
    TagSettings,
    TagSourceBase,
    TagSourceSettings,
)

__all__ = [
    "ArchiveSettings",
    "CameraBase",
    "CameraSettings",
    "ChangeoverSettings",
    "Command",
    "ConditionSettings",
    "DerivedTagSettings",
    "DerivedTagSource",
    "EngineSettings",
    "GigeCameraSettings",
    "GpuSettings",
    "GridSettings",
    "HandshakeSettings",
    "HistorySettings",
    "ImageRules",
    "JournalSettings",
    "JournalSync",
    "Listener",
    "MachineAlarmSettings",
    "MachineSettings",
    "ModbusPlcSettings",
    "ModbusRegisters",
    "ModbusServerPlcSettings",
    "ModbusServerSettings",
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
    "OpcuaServerSettings",
    "OpcuaTagSource",
    "OpencvCameraSettings",
    "PlcSettings",
    "RecipeSettings",
    "RegionMode",
    "RegionSettings",
    "ReplayCameraSettings",
    "ReplayTagSource",
    "Role",
    "Secret",
    "ServerSettings",
    "ServerUser",
    "Settings",
    "StateSource",
    "StationSettings",
    "TagSettings",
    "TagSourceBase",
    "TagSourceSettings",
    "TlsSettings",
    "TriggerSettings",
    "TriggerSource",
    "ViewSettings",
]
