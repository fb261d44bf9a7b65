"""In place of Grafana: it loads what is provisioned and answers a few of Grafana's addresses.

GET /api/health                              once everything is loaded
GET /api/search                              [{"uid": ..., "title": ...}]
GET /api/dashboards/uid/UID                  {"dashboard": ...}
GET /api/datasources/proxy/uid/UID/PATH      what the data source answers
"""

import http.server
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import yaml

PROVISIONING = Path("/etc/grafana/provisioning")
HOME = Path(os.environ["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
PROXY = "/api/datasources/proxy/uid/"


def provisioned(kind: str, part: str) -> list[dict]:
    """Return the entries of a kind's files."""
    files = (PROVISIONING / kind).glob("*.yml")
    return [each for file in files for each in yaml.safe_load(file.read_text())[part]]


SOURCES = {each["uid"]: each["url"] for each in provisioned("datasources", "datasources")}
FOLDERS = [Path(each["options"]["path"]) for each in provisioned("dashboards", "providers")]
LOADED = [json.loads(path.read_text()) for at in FOLDERS for path in sorted(at.glob("*.json"))]
BOARDS = {each["uid"]: each for each in LOADED}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers."""

    def do_GET(self) -> None:
        """Answer."""
        if self.path.startswith(PROXY):
            uid, _, path = self.path.removeprefix(PROXY).partition("/")
            self._send(*fetched(f"{SOURCES[uid]}/{path}"))
        elif self.path == "/api/health":
            self._send(200, {"database": "ok"})
        elif self.path.startswith("/api/search"):
            self._send(200, [{"uid": uid, "title": x["title"]} for uid, x in BOARDS.items()])
        else:
            self._send(200, {"dashboard": BOARDS[self.path.rsplit("/", 1)[1]]})

    def _send(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def fetched(url: str) -> tuple[int, object]:
    """Return what a data source answers, refusals too."""
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


(Path("/var/lib/grafana") / "written").write_text("as Grafana writes its database")
json.loads(HOME.read_text())
assert SOURCES
assert BOARDS
http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
