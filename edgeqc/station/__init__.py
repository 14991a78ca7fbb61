"""The station process: its cameras, their engines, one PLC link, and a verdict for every part in time.

How a part flows: `line` sees the trigger and takes the frames, `inspection` runs the engine, `outcome` journals and
announces the verdict; `guard` stands by with the fail-safe one.
"""
