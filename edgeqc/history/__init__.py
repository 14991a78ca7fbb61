"""The tags' own recording: a ring of files in the state directory, written as values come, read by training and people."""

from edgeqc.history.reader import Chunk, History
from edgeqc.history.writer import FOLDER, HistoryWriter

__all__ = ["FOLDER", "Chunk", "History", "HistoryWriter"]
