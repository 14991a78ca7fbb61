"""An OPC UA server that shares no line with ours: node-opcua, fetched by npm into a folder of the test run."""

from __future__ import annotations

import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

from edgeqc.errors import EdgeqcError

USER: Final = "edge"
PASSWORD: Final = "s3cret"  # noqa: S105 - of a server on loopback
INSTALLED: Final = Path(sys.prefix) / "node-opcua"
"""Where `scripts/install test` puts it."""
_PACKAGE: Final = "node-opcua@2"
_INSTALL_S: Final = 300
_START_S: Final = 120.0
_SCRIPT: Final = Path(__file__).with_name("nodeopcua.js")


class NodeOpcua:
    """A context: the server runs from its begin to its end; Basic256Sha256, SignAndEncrypt, user and password."""

    def __init__(self, folder: Path, *, tags: int, period_ms: int = 100) -> None:
        """Run in `folder`, where node-opcua is installed if it is not yet; each tag counts periods from 0."""
        self.url = ""
        self.namespace = ""
        """Of its nodes, as `ns=1`: `<namespace>;s=Tag0`, ..., and `s=Toggle`."""
        self._folder = folder.absolute()
        self._arguments = [str(tags), str(period_ms)]
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Of the running server."""
        if self._process is None:
            raise EdgeqcError("node-opcua is not running")
        return self._process.pid

    def toggle(self) -> None:
        """From now on `s=Toggle` goes to and fro, or, called again, stands; it begins at 0."""
        if self._process is None:
            raise EdgeqcError("node-opcua is not running")
        stdin: Any = self._process.stdin
        stdin.write("\n")
        stdin.flush()

    def __enter__(self) -> Self:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise EdgeqcError("node and npm are not installed (Debian: nodejs npm)")
        if not (self._folder / "node_modules" / "node-opcua").is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", _PACKAGE]
            done = subprocess.run(  # noqa: S603 - a fixed command
                install, cwd=self._folder, capture_output=True, text=True, timeout=_INSTALL_S, check=False
            )
            if done.returncode:
                raise EdgeqcError(f"npm could not install {_PACKAGE}: {done.stderr[-500:]}")
        script = self._folder / _SCRIPT.name  # node looks for modules beside the script
        script.write_bytes(_SCRIPT.read_bytes())
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [node, str(script), *self._arguments],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stdout: Any = self._process.stdout
        while select.select([stdout], [], [], _START_S)[0]:
            line = stdout.readline()
            if line.startswith("READY "):
                _, self.url, self.namespace = line.split()
                return self
            if not line:
                break
        self.__exit__()
        raise EdgeqcError("node-opcua did not start")

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            with process:  # closes the pipe
                process.kill()
