"""The link to the PLC: trigger in, result out."""
