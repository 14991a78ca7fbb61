"""Decisions, pure: no I/O, no clock, no logging. Time comes in as monotonic nanoseconds."""
