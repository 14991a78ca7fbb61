"""edgeqc: inspects every part on a production line and answers for it in time."""

__version__ = "0.1.0"
