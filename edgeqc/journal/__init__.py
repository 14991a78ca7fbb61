"""The journal: the only way out of the decision path.

Fixed-size records, each with its own CRC and sequence, in memory-mapped segments of a folder per writer. Appending
costs microseconds; a thread of the journal's own brings the records to the disk.
"""

from edgeqc.journal.codec import Entry
from edgeqc.journal.reader import Cursor, JournalReader, list_journals, mark_archived, recent_cursor
from edgeqc.journal.writer import JournalWriter

__all__ = ["Cursor", "Entry", "JournalReader", "JournalWriter", "list_journals", "mark_archived", "recent_cursor"]
