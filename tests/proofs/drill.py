"""The fire drill: each part is broken, the right alert must fire, and clear: ``make drill``.

Everything is real: Valkey, S3 and SQS over HTTP, two workers, intake, query service, exporter, the
embedded Qdrant behind its owner, and Prometheus with the rules of deploy/prometheus, under a steady
load of uploads and queries. Only time is shortened: the rules' ``for:`` and their windows are
divided by ``--faster``, 10 if not given. What a rule compares with (30 s until an upload is found)
stays. Before anything is broken no alert may fire.
"""

import argparse
import contextlib
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from deployment import WORKERS, Deployment, until
from rich.console import Console
from rich.table import Table
from stage import Content, Stage

from audiofuse.core.errors import Reason
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.repair.backfill import reconcile

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules"
SCRAPE_S = 5  # the exporter may take 4 s to find that something is away
CALM_S = 60
FIRES_S, CLEARS_S = 150, 300
UPLOAD_S, ASK_S, LOOK_S = 0.5, 0.5, 0.5
LATE_S = 100
FLOOD = 60
LOST = 20
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DURATION = re.compile(r"(?<=for: )(\d+)([smhd])\b|(?<=\[)(\d+)([smhd])(?=\])")

LINGERS = "AudiofuseFreshnessBurnSlow"  # by design, for as long as its shorter window

Alert = tuple[str, str]  # name, and the label that tells it from others of that name

console = Console(width=120)


def shortened(rules: str, factor: float) -> str:
    """Return rules with all windows and patience divided by ``factor``."""

    def divide(found: re.Match[str]) -> str:
        number, unit = found[1] or found[3], found[2] or found[4]
        return f"{round(1000 * int(number) * UNITS[unit] / factor)}ms"

    return DURATION.sub(divide, rules)


class Watched(Deployment):
    """The chaos's deployment with query service, exporter, and a Prometheus that watches it all."""

    def __init__(self, root: Path, factor: float) -> None:
        """Start everything; return once Prometheus has seen all of it."""
        self._factor = factor
        super().__init__(root, s3=True)
        for name in ("search", "exporter"):
            self.start(name)
        self._configure()
        self.start("prometheus")
        kinds = {"worker", "intake", "search", "exporter", "index"}
        until(lambda: kinds <= self._answering() and not self.firing(), "all processes are there")

    def _s3(self) -> dict[str, Any]:
        told = (*WORKERS, "intake", "index", "search", "exporter")
        self._told = {name: free_port() for name in told}  # where each tells its metrics
        self._ports |= {"search": free_port(), "prometheus": free_port()}
        return super()._s3() | {"search_url": self.url("search")}

    def url(self, name: str) -> str:
        """Return where a server listens."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def _command(self, name: str) -> list[str]:
        port = str(self._ports.get(name))
        own = {
            "search": [sys.executable, "-m", "audiofuse", "serve", "--port", port],
            "exporter": [sys.executable, "-m", "audiofuse", "exporter"],
            "prometheus": [
                "prometheus", f"--config.file={self.root}/prometheus.yml",
                f"--storage.tsdb.path={self.root}/prometheus",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
        }  # fmt: skip
        return own.get(name) or super()._command(name)

    def _variables(self, name: str) -> dict[str, str]:
        port = self._told.get(name)
        listen = {"AUDIOFUSE_METRICS_LISTEN": f"127.0.0.1:{port}"} if port else {}
        return super()._variables(name) | listen

    def _configure(self) -> None:
        for path in RULES.glob("*.yml"):
            (self.root / path.name).write_text(shortened(path.read_text(), self._factor))
        jobs: dict[str, list[str]] = {}
        for name, port in self._told.items():
            jobs.setdefault(name.partition("-")[0], []).append(f"127.0.0.1:{port}")
        config = {
            "global": {
                "scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s",
                "evaluation_interval": "1s",
            },
            "rule_files": [path.name for path in RULES.glob("*.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": targets}]}
                for job, targets in jobs.items()
            ],
        }  # fmt: skip
        (self.root / "prometheus.yml").write_text(yaml.safe_dump(config))

    def _answering(self) -> set[str]:
        answer = self._prometheus("query", query="count by (process) (audiofuse_build_info)")
        return {each["metric"]["process"] for each in answer["result"]}

    def firing(self) -> dict[Alert, str]:
        """Return what each alert that fires says."""
        return {
            (each["labels"]["alertname"], _told_by(each["labels"])): str(each["annotations"])
            for each in self._prometheus("alerts")["alerts"]
            if each["state"] == "firing"
        }

    def _prometheus(self, path: str, **parameters: str) -> dict[str, Any]:
        url = f"{self.url('prometheus')}/api/v1/{path}"
        answer = httpx.get(url, params=parameters, timeout=20).raise_for_status()
        return dict(answer.json()["data"])


def _told_by(labels: dict[str, str]) -> str:
    """Return the label that tells an alert from others of its name."""
    known = ("part", "process", "reason", "outcome", "source", "lane")
    return next((labels[name] for name in known if name in labels), "")


class Load:
    """Uploads and queries, all the while, whatever is away."""

    def __init__(self, watched: Watched) -> None:
        """Begin."""
        self.stage = Stage(watched, "load/", random.Random(0), 1.0)
        self._url = watched.url("search")
        self._stopping, self._calm = threading.Event(), threading.Event()
        for job, pause_s in ((self._upload, UPLOAD_S), (self._ask, ASK_S)):
            threading.Thread(target=self._repeat, args=(job, pause_s), daemon=True).start()

    def _repeat(self, job: Callable[[], object], pause_s: float) -> None:
        while not self._stopping.wait(pause_s):
            if not self._calm.is_set():
                with contextlib.suppress(Exception):  # what is away is away on purpose
                    job()

    def _upload(self) -> None:
        sound = self.stage.random.choice(self.stage.sounds)
        self.stage.put(self.stage.new_key(), Content(sound.read_bytes()))

    def _ask(self) -> None:
        httpx.get(f"{self._url}/v1/search", params={"q": "an owl"}, timeout=10)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause."""
        self._calm.set()
        yield
        self._calm.clear()

    def stop(self) -> None:
        """End."""
        self._stopping.set()


@dataclass(frozen=True)
class Fault:
    """What is broken, how, how it is mended, and which alerts must fire."""

    name: str
    alerts: set[Alert]
    breaks: Callable[[], object]
    mends: Callable[[], object]


class Faults:
    """Everything that is broken."""

    def __init__(self, watched: Watched, load: Load) -> None:
        """Break parts of what is ``watched``, under ``load``."""
        self._watched = watched
        self._load = load
        self._stage = Stage(watched, "drill/", random.Random(1), 1.0)

    def all(self) -> list[Fault]:
        """Return them, in order."""
        gone = "AudiofuseGone"
        return [
            self._killed("worker-0", ("AudiofuseWorkerLost", "")),
            self._stopped(
                "both workers stopped", WORKERS, ("AudiofuseStuck", "live"), (gone, "worker")
            ),
            Fault(
                "workers went on late", {("AudiofuseFreshnessBurnFast", "")},
                self._hold_up, self._nothing,
            ),
            self._killed(
                "valkey", ("AudiofusePartDown", "queue"), ("AudiofuseIntakeFailing", "sqs")
            ),
            self._killed("index", ("AudiofusePartDown", "index"), ("AudiofuseQueryErrors", "")),
            self._stopped("store stopped", ("store",), ("AudiofusePartDown", "store")),
            self._killed("intake", (gone, "intake")),
            self._killed("search", (gone, "search")),
            self._killed("exporter", (gone, "exporter")),
            Fault(
                "bad files, broken sidecars, strange events",
                {
                    ("AudiofuseDeadLetters", Reason.NOT_AUDIO),
                    ("AudiofuseDeadLetters", Reason.BAD_SIDECAR),
                    ("AudiofuseEventsDropped", "malformed"),
                },
                self._flood, self._nothing,
            ),
            Fault(
                "events lost", {("AudiofuseReconcileDiffers", "")},
                self._lose_events, self._reconcile,
            ),
        ]  # fmt: skip

    def _killed(self, name: str, *alerts: Alert) -> Fault:
        return Fault(
            f"{name} killed", set(alerts),
            lambda: self._watched.kill(name), lambda: self._watched.start(name),
        )  # fmt: skip

    def _stopped(self, title: str, names: tuple[str, ...], *alerts: Alert) -> Fault:
        return Fault(
            title, set(alerts),
            lambda: self._watched.signal(signal.SIGSTOP, *names),
            lambda: self._watched.signal(signal.SIGCONT, *names),
        )  # fmt: skip

    def _nothing(self) -> None:
        """Mend what passes by itself."""

    def _hold_up(self) -> None:
        self._watched.signal(signal.SIGSTOP, *WORKERS)
        time.sleep(LATE_S)
        self._watched.signal(signal.SIGCONT, *WORKERS)

    def _flood(self) -> None:
        sound = self._stage.sounds[0].read_bytes()
        for _ in range(FLOOD):
            self._stage.put(self._stage.new_key(), Content(b"no sound"))
            key = self._stage.put(self._stage.new_key(), Content(sound))
            self._stage.put(f"{key}.json", Content(b"{"))
        self._stage.send(["{"] * FLOOD)

    def _lose_events(self) -> None:
        """Upload while the bucket is silent, and compare, twice."""
        sound = self._stage.sounds[0].read_bytes()
        with self._load.paused():
            until(self._watched.idle, "quiet")
            self._watched.notify(on=False)
            for _ in range(2):
                for _ in range(LOST):
                    self._stage.put(self._stage.new_key(), Content(sound))
                reconcile(self._watched.settings)
            self._watched.notify(on=True)

    def _reconcile(self) -> None:
        with self._load.paused():
            until(self._watched.idle, "quiet")
            reconcile(self._watched.settings)


class Drill:
    """Plays the faults and keeps what came of them."""

    def __init__(self, watched: Watched) -> None:
        """Look at the alerts of ``watched``."""
        self._watched = watched
        self.fired: set[Alert] = set()
        self.failed = False
        self.table = Table(title="fire drill", title_justify="left")
        for column in ("fault", "alert", "fired after s", "cleared after s", "fired too"):
            self.table.add_column(column, justify="right" if "after" in column else "left")

    def calm(self) -> None:
        """Have nothing broken for a while: no alert may fire."""
        seen = self._follow(lambda _: False, CALM_S)
        self._row("nothing", "none", "", "", seen.keys(), is_right=not seen)

    def play(self, fault: Fault) -> None:
        """Break, wait for the alerts, mend, wait until none fires any more."""
        before, broken = self._watched.firing(), time.monotonic()
        fault.breaks()
        seen = self._follow(lambda firing: fault.alerts <= firing.keys(), FIRES_S)
        mended = time.monotonic()
        fault.mends()
        after = self._follow(_is_over, CLEARS_S)
        is_over = _is_over(self._watched.firing())
        others = (seen.keys() | after.keys()) - fault.alerts - before.keys()
        for alert in sorted(fault.alerts):
            fired = f"{seen[alert][0] - broken:.0f}" if alert in seen else "NEVER"
            _, last = after.get(alert, (mended, mended))
            cleared = f"{last - mended:.0f}" if is_over else "NEVER"
            is_right = is_over and alert in seen
            self._row(fault.name, _shown(alert), fired, cleared, others, is_right=is_right)
        self.fired |= fault.alerts & seen.keys()
        self._watched.start_again()

    def _follow(
        self, enough: Callable[[dict[Alert, str]], bool], patience_s: float
    ) -> dict[Alert, tuple[float, float]]:
        """Look until what fires is enough; return when each alert was seen first and last."""
        seen: dict[Alert, tuple[float, float]] = {}
        deadline = time.monotonic() + patience_s
        while True:
            firing, now = self._watched.firing(), time.monotonic()
            for alert in firing:
                first, _ = seen.get(alert, (now, now))
                seen[alert] = (first, now)
            if enough(firing) or now > deadline:
                return seen
            time.sleep(LOOK_S)

    def _row(  # noqa: PLR0913 - it has as many cells
        self, fault: str, alert: str, fired: str, cleared: str, others: Iterable[Alert], *,
        is_right: bool,
    ) -> None:  # fmt: skip
        cells = (fault, alert, fired, cleared, ", ".join(sorted(map(_shown, others))))
        self.table.add_row(*cells, style="" if is_right else "red")
        console.print("  ".join(cells), markup=False, highlight=False, soft_wrap=True)
        self.failed |= not is_right


def _is_over(firing: Mapping[Alert, str]) -> bool:
    return all(name == LINGERS for name, _ in firing)


def _shown(alert: Alert) -> str:
    name, of_what = alert
    return f"{name.removeprefix('Audiofuse')} {of_what}".strip()


def _all_alerts() -> set[str]:
    return set(re.findall(r"alert: (\w+)", (RULES / "alerts.yml").read_text()))


def main() -> int:
    """Break everything; print a table; return 1 if an alert did not fire, or did not clear."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faster", type=float, default=10.0, help="divides the rules' times")
    parser.add_argument("--fault", action="append", help="only faults whose name begins so")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        watched = Watched(Path(temporary, "drill"), options.faster)
        try:
            console.print(f"Prometheus: {watched.url('prometheus')}")
            load, drill = Load(watched), Drill(watched)
            drill.calm()
            for fault in Faults(watched, load).all():
                if not options.fault or fault.name.startswith(tuple(options.fault)):
                    drill.play(fault)
            load.stop()
        finally:
            watched.stop()
    rest = sorted(_all_alerts() - {name for name, _ in drill.fired})
    console.print(drill.table)
    console.print(f"in promtool's tests only: {', '.join(rest)}")
    console.print(
        f"{time.monotonic() - started:.0f} s in all, at {options.faster:g} times the pace"
    )
    return int(drill.failed)


if __name__ == "__main__":
    sys.exit(main())
