"""The watch process: tag values in, the table of their newest values and alerts out. It may wait for tag servers."""
