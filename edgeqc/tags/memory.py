"""What an OPC UA server was like when its tags were first read: kept, so that a change is noticed over restarts.

A file per source in the state directory, `tags/<source>.json`; `edgeqc tags accept` removes it, and what is there then counts as right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

FOLDER: Final = "tags"
"""In the state directory."""


class Memory:
    """One source's. Any damage of the file counts as nothing remembered: the server is learnt anew."""

    def __init__(self, path: Path, nodes: str) -> None:
        """Begin with nothing; `nodes` is a digest of what the configuration asks for."""
        self.path = path
        self.namespaces: list[str] = []
        """The server's namespace URIs by their index."""
        self.kinds: dict[str, str] = {}
        """Type of value by tag name."""
        self.started = ""
        """When the server said it started."""
        self._nodes = nodes
        self._on_disk = False
        """Was there a file, when it was loaded or since."""

    @classmethod
    def load(cls, state_dir: Path, source: str, tags: Sequence[tuple[str, str]]) -> Self:
        """What is remembered of `source`; nothing where the configuration names other nodes since then.

        Args:
            state_dir: the daemon's.
            source: as the configuration names it.
            tags: name and NodeId of each tag.
        """
        digest = hashlib.sha256(json.dumps(list(tags)).encode()).hexdigest()[:16]
        memory = cls(memory_path(state_dir, source), digest)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            raw = memory.path.read_bytes()
            memory._on_disk = True
            kept: dict[str, Any] = json.loads(raw)
            if kept["nodes"] == digest:
                memory.namespaces = [str(uri) for uri in kept["namespaces"]]
                memory.kinds = {str(name): str(kind) for name, kind in kept["kinds"].items()}
                memory.started = str(kept["started"])
        return memory

    def save(self) -> None:
        """Write it whole. OSError where the disk will not: it is asked again with the next change."""
        kept = {
            "nodes": self._nodes,
            "namespaces": self.namespaces,
            "kinds": self.kinds,
            "started": self.started,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        part.write_text(json.dumps(kept, indent=1) + "\n")
        part.replace(self.path)
        self._on_disk = True

    @property
    def forgotten(self) -> bool:
        """Has someone removed the file since it was there (`edgeqc tags accept`)? One that could not be made is not removed."""
        return self._on_disk and not self.path.exists()


def memory_path(state_dir: Path, source: str) -> Path:
    """Where a source's memory lies."""
    return state_dir / FOLDER / f"{source}.json"
