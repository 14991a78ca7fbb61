"""What runs: each journal's writer since its last start, and the models that it judges by."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from edgeqc.records import Started


class Runs:
    """In memory as in the tables. Used by the archive's thread only; make it anew after a transaction was rolled back."""

    def __init__(self, database: sqlite3.Connection) -> None:
        """Take all from the tables."""
        self._database = database
        self._runs: dict[str, sqlite3.Row] = {row["writer"]: row for row in database.execute("SELECT * FROM journals")}
        self._models: dict[tuple[str, str, str], str] = {
            (row["writer"], row["recipe"], row["camera"]): row["model"]
            for row in database.execute("SELECT * FROM recipes")
        }
        """Writer, recipe and camera (empty where there is one) to the model, as name@version."""

    def run_id(self, writer: str) -> str:
        """Of its last start; empty where it never told of one."""
        run = self._runs.get(writer)
        return run["run_id"] if run is not None else ""

    def model(self, writer: str, recipe: str, camera: str) -> str:
        """What judges there, as name@version; empty where nobody said."""
        run = self._runs.get(writer)
        return self._models.get((writer, recipe, camera)) or (run["model"] if run is not None else "")

    def view_model(self, writer: str, recipe: str, camera: str) -> str:
        """As `model`, for one view of several: nobody else's will do."""
        return self._models.get((writer, recipe, camera), "")

    def started(self, writer: str, started: Started) -> None:
        """It began anew; its recipes are told of next."""
        self._database.execute(
            "INSERT INTO journals(writer, segment, offset, run_id, version, config_digest, backend, model, model_digest) "
            "VALUES(?, 0, 0, ?, ?, ?, ?, ?, ?) ON CONFLICT(writer) DO UPDATE SET run_id=excluded.run_id, "
            "version=excluded.version, config_digest=excluded.config_digest, backend=excluded.backend, "
            "model=excluded.model, model_digest=excluded.model_digest",
            (
                writer,
                started.run_id,
                started.version,
                started.config_digest,
                started.backend,
                started.model,
                started.model_digest,
            ),
        )
        self._runs[writer] = self._database.execute("SELECT * FROM journals WHERE writer=?", (writer,)).fetchone()
        self._database.execute("DELETE FROM recipes WHERE writer=?", (writer,))
        self._models = {key: model for key, model in self._models.items() if key[0] != writer}

    def recipe(self, writer: str, facts: Mapping[str, Any]) -> None:
        """A station tells what judges by one of its recipes; `info` shows it."""
        row = {"writer": writer, **{name: str(facts.get(name, "")) for name in _RECIPE}}
        self._database.execute(
            f"INSERT OR REPLACE INTO recipes({', '.join(row)}) VALUES({', '.join('?' * len(row))})",
            tuple(row.values()),
        )
        self._models[writer, row["recipe"], row["camera"]] = row["model"]


_RECIPE: Final = ("recipe", "camera", "model", "model_digest", "backend", "why", "vouched")
