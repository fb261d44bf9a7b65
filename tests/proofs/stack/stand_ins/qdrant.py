#!/opt/audiofuse/bin/python
"""In place of Qdrant's server: its embedded engine on the loopback, and a way to it from outside.

It reads the server's settings of docker-compose.yml, and ends at SIGTERM as the server does.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

INNER, OUTER = 6334, 6333
CHUNK = 65536


def carry(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes until there is no more; then tell the other side."""
    try:
        while chunk := source.recv(CHUNK):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        target.close()


def accept(server: socket.socket) -> None:
    """Connect whoever comes with the engine."""
    while True:
        outside, _ = server.accept()
        try:
            inside = socket.create_connection(("127.0.0.1", INNER))
        except OSError:  # it still starts, or ends
            outside.close()
            continue
        for pair in ((outside, inside), (inside, outside)):
            threading.Thread(target=carry, args=pair, daemon=True).start()


def main() -> None:
    """Run the engine until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-path", required=True, type=Path)
    config = parser.parse_args().config_path.read_text()
    found = re.fullmatch(r'service:\n  api_key: "(\w+)"\n', config)
    key = Path("/run/secrets/qdrant_api_key")
    assert found, "the configuration is not as docker-compose.yml writes it"
    assert found[1] == key.read_text()
    environment = os.environ | {
        "AUDIOFUSE_QDRANT_API_KEY_FILE": str(key),
        "AUDIOFUSE_HOME": os.environ["QDRANT__STORAGE__STORAGE_PATH"],
        "OMP_NUM_THREADS": "1",
        "HOME": "/tmp",
    }
    engine = subprocess.Popen(
        ["/opt/audiofuse/bin/audiofuse", "serve-index", "--port", str(INNER)], env=environment
    )

    def end(*_: object) -> None:
        sys.stdout.write("SIGTERM received; starting graceful shutdown\n")
        sys.stdout.flush()
        engine.terminate()

    signal.signal(signal.SIGTERM, end)
    server = socket.create_server(("0.0.0.0", OUTER), backlog=512)
    threading.Thread(target=accept, args=(server,), daemon=True).start()
    code = engine.wait()
    raise SystemExit(0 if code == -signal.SIGTERM else code)  # it was asked to, and has


main()
