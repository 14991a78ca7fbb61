"""The server processes: what SCADA and MES read of this box, over Modbus TCP and OPC UA. Nothing waits for them."""
