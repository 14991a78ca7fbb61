"""The line in virtual time: one process, one thread, one seed, the same trace each time.

The decision core, the handshake, the accounting, the gate, the restart rules and the courier of the outbox are those that
ship (`edgeqc.core`, `edgeqc.office.courier`); camera, engine, PLC, disk, archive, broker and the threads that drive the
core are simulated, with faults that each seed draws anew. `edgeqc sim --seed N` replays one seed.
"""
