"""Runs inside the guest: takes commands from the host over a virtio serial port, sends back their output.

One JSON object a line. Host to guest: ``{"argv": [...], "env": {...}, "cwd": "/"}``, or ``{}`` for: stop.
Guest to host: ``{"ready": true}`` once, then per command any number of ``{"stream": "stdout"|"stderr",
"data": <base64>}`` and one ``{"exit": <code>}``. Uses nothing but the standard library: the code under test
is not loaded here.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import IO, Any

PORT = "layerlimit.agent"


def find_port() -> Path:
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text(encoding="ascii").strip() == PORT:
            return Path("/dev") / entry.name
    raise FileNotFoundError(f"no virtio serial port is called {PORT}")


class Agent:
    def __init__(self, port: IO[bytes]) -> None:
        self._port = port
        self._sending = threading.Lock()

    def serve(self) -> None:
        self._send({"ready": True})
        for line in self._port:
            request = json.loads(line)
            if not request:
                return
            try:
                code = self._run(request)
            except OSError as error:
                self._send_data("stderr", f"{error}\n".encode())
                code = 127
            self._send({"exit": code})

    def _run(self, request: dict[str, Any]) -> int:
        with subprocess.Popen(
            request["argv"],
            env={**os.environ, **request["env"]},
            cwd=request["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            pumps = [
                threading.Thread(target=self._pump, args=(name, stream))
                for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()
            return process.wait()

    def _pump(self, name: str, stream: IO[bytes]) -> None:
        while data := os.read(stream.fileno(), 1 << 16):
            self._send_data(name, data)

    def _send_data(self, name: str, data: bytes) -> None:
        self._send({"stream": name, "data": base64.b64encode(data).decode("ascii")})

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._port.write(json.dumps(message).encode() + b"\n")
            self._port.flush()


if __name__ == "__main__":
    # Unbuffered reading: the port is no file that could be read ahead; two buffers would share one position.
    with find_port().open("r+b", buffering=0) as raw:
        Agent(raw).serve()
