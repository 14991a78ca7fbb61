"""The line in virtual time: one process, one thread, one seed, the same trace each time.

The decision core, the handshake, the accounting, the gate, the restart rules and the way from the journal to the broker
are those that ship (`edgeqc.core`, `edgeqc.office`); camera, engine, PLC, disk, broker and the threads that drive the
core are simulated, with faults that each seed draws anew. `edgeqc sim --seed N` replays one seed.
"""
