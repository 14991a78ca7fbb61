"""The line in virtual time: one process, one thread, one seed, the same trace each time.

The decision core, the handshake, the accounting, the gate and the restart rules are those that ship (`edgeqc.core`);
camera, engine, PLC, disk and the threads that drive the core are simulated, with faults that each seed draws anew.
`edgeqc sim --seed N` replays one seed. The way from the archive to the broker, which no verdict waits for, is tested the
same way beside it (tests/unit/test_virtual_outbox.py).
"""
