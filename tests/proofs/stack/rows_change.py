"""Rows: what changes while it runs, the image, the encoder, the workers; and what it tells."""

import json
import re
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Self

import httpx
from images import docker
from rows_use import OWL
from stack import GRAFANA, Stack

NEXT = "proof-next"
QUIET_S, EVERY_S = 300, 15
MAY_BE_EMPTY = (  # on a deployment without failures, GPUs and candidates
    "fail", "dead", "letter", "gpu", "candidate", "error", "retr", "refus", "outage", "alert",
    "rollout", "coverage", "reject", "redeliver", "slow", "held", "oom",
)  # fmt: skip
ALERT = '[{"labels": {"alertname": "AudiofuseProof", "severity": "page"}}]'
RECEIVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""
PUBLISH = "audiofuse encoder start --out /tmp/e && audiofuse-train publish /tmp/e/* --name proof"


def upgraded(stack: Stack) -> str:
    """Up to a second tag and back to the first: the same items, and both images are there."""
    before = stack.keys()
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", f"audiofuse:{NEXT}", "--label", "next=1", "-"],
        check=True, input=b"FROM audiofuse:cpu\n", stdout=subprocess.DEVNULL,
    )  # fmt: skip
    took = []
    for tag in (NEXT, stack.env["IMAGE_TAG"]):
        started = time.monotonic()
        stack.compose("up", "--wait", "--detach", "--no-build", IMAGE_TAG=tag)
        took.append(f"{time.monotonic() - started:.0f} s")
        (worker,) = stack.containers("worker").values()
        assert worker["Config"]["Image"] == f"audiofuse:{tag}", worker["Config"]["Image"]
        stack.until(lambda: stack.keys() == before, "the same items", 30)
        docker("image", "inspect", f"audiofuse:{NEXT}", f"audiofuse:{stack.env['IMAGE_TAG']}")
    return f"{len(before)} items; there {took[0]}, back {took[1]}"


class Asking:
    """Asks five questions a second until told to stop; counts those that fail."""

    def __init__(self, stack: Stack) -> None:
        """Begin."""
        self._stack = stack
        self._stop = threading.Event()
        self.asked, self.failed = 0, []
        self._threads: list[threading.Thread] = []
        self._clock = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        """Begin to ask."""
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ask no more, and wait for the answers."""
        self._stop.set()
        self._clock.join()
        for each in self._threads:
            each.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            self._threads.append(threading.Thread(target=self._ask))
            self._threads[-1].start()

    def _ask(self) -> None:
        self.asked += 1
        try:
            self._stack.search("an owl", limit=3)
        except httpx.HTTPError as error:
            self.failed.append(repr(error)[:200])


def swapped(stack: Stack) -> str:
    """Publish, promote and roll back an encoder while questions are asked."""
    before = stack.live()
    said = stack.compose(
        "run", "--rm", "--no-TTY", "--entrypoint", "sh", "operator", "-ec", PUBLISH
    )
    version = re.findall(r"proof-\w+", said)[-1]
    with Asking(stack) as asking:
        stack.operator("rollout", "start", version)
        stack.operator("rollout", "promote", "--force", "quality")
        assert stack.live() == version
        stack.operator("rollout", "rollback")
        assert stack.live() == before
    assert not asking.failed, f"{len(asking.failed)} of {asking.asked}: {asking.failed[0]}"
    stack.operator("rollout", "abort")
    return f"{before} to {version} and back: 0 of {asking.asked} questions failed"


def two_workers(stack: Stack) -> str:
    """Two workers are two targets, and both get work."""
    up = ("up", "--wait", "--detach", "--no-build", "--no-recreate")
    stack.compose(*up, "--scale", "worker=2")
    workers = [name for name in stack.running() if name.startswith("worker-")]
    assert len(workers) == 2, workers
    stack.until(lambda: len(_workers(stack)) == 2, "two targets", 60)
    keys = [f"proof/two-{number}.wav" for number in range(60)]
    for key in keys:
        stack.upload(key, OWL)
    stack.until(lambda: set(keys) <= stack.keys(), "all found", 60)
    log = stack.logs("worker")
    done = {
        name: sum(line.startswith(name) and "proof/two-" in line for line in log.splitlines())
        for name in workers
    }
    assert all(done.values()), done
    stack.compose(*up, "--scale", "worker=1")
    return f"{done}"


def _workers(stack: Stack) -> list[str]:
    return [x for x, health in stack.targets().items() if x.startswith("worker") and health == "up"]


def watched(stack: Stack) -> str:
    """Every target is up, no alert after five minutes, no panel without data but those that may."""
    # Those of a worker that was scaled away, and alerts of what other rows broke, have to pass.
    stack.until(lambda: set(stack.targets().values()) == {"up"}, "every target up", 120)
    for number in range(QUIET_S // EVERY_S):  # panels of what happens have something to show
        stack.upload(f"proof/watched-{number}.wav", OWL)
        stack.search("an owl")
        time.sleep(EVERY_S)
    alerts = [each["labels"]["alertname"] for each in stack.prometheus("alerts")["alerts"]]
    assert not alerts, alerts
    assert set(stack.targets().values()) == {"up"}, stack.targets()
    asked, empty = _panels(stack)
    wrong = [each for each in empty if not any(word in each.lower() for word in MAY_BE_EMPTY)]
    assert not wrong, f"empty: {wrong}"
    return f"{len(stack.targets())} targets, no alert; {asked} panels' queries, {len(empty)} empty"


def told(stack: Stack) -> str:
    """Alertmanager is known to Prometheus, and whoever has the webhook hears of an alert."""
    url = Path(stack.env["SECRETS"], "alert_url")
    url.chmod(0o644)
    url.write_text("http://receiver:8080/")
    receiver = docker(
        "run", "--rm", "--detach", "--network", f"{stack.project}_inside", "--network-alias",
        "receiver", "--entrypoint", "python", "audiofuse:cpu", "-uc", RECEIVER,
    ).strip()  # fmt: skip
    alertmanager = ("--profile", "alerts")
    try:
        stack.compose(*alertmanager, "up", "--wait", "--detach", "--no-build", "alertmanager")
        known = stack.until(
            lambda: stack.prometheus("alertmanagers")["activeAlertmanagers"], "known", 60
        )
        stack.compose(
            *alertmanager, "exec", "--no-TTY", "alertmanager", "wget", "-q", "-O", "-", "--header",
            "Content-Type: application/json", "--post-data", ALERT, "http://127.0.0.1:9093/api/v2/alerts",
        )  # fmt: skip
        heard = stack.until(lambda: "AudiofuseProof" in docker("logs", receiver), "heard", 60)
    finally:
        docker("rm", "--force", receiver)
        stack.compose(*alertmanager, "rm", "--stop", "--force", "alertmanager")
    return f"known after {known:.0f} s, heard after {heard:.0f} s"


def _panels(stack: Stack) -> tuple[int, list[str]]:
    """Return how many queries all panels have, and which of them has no series now."""
    login = ("admin", stack.secrets["grafana_password"])
    with httpx.Client(base_url=GRAFANA, auth=login, timeout=30) as grafana:
        boards = grafana.get("/api/search", params={"type": "dash-db"}).json()
        assert len(boards) == 3, boards
        asked, empty = 0, []
        for board in boards:
            shown = grafana.get(f"/api/dashboards/uid/{board['uid']}").json()["dashboard"]
            panels = [x for each in shown["panels"] for x in (each, *each.get("panels", ()))]
            for panel in panels:
                for target in panel.get("targets", ()):
                    asked += 1
                    if not _series(grafana, target["expr"]):
                        empty.append(f"{board['title']}: {panel['title']}: {target['expr']}")
    return asked, empty


def _series(grafana: httpx.Client, query: str) -> int:
    values = {"__rate_interval": "5m", "__interval": "1m", "__range": "15m"}
    query = re.sub(r"\$\{?(\w+)(:\w+)?\}?", lambda found: values.get(found[1], ".*"), query)
    path = "/api/datasources/proxy/uid/prometheus/api/v1/query?"
    answer = grafana.get(path + urllib.parse.urlencode({"query": query}))
    assert answer.is_success, f"{query}: {answer.text}"
    return len(json.loads(answer.text)["data"]["result"])
