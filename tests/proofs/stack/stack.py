"""docker-compose.yml as it is, under a project name of its own, driven from outside."""

import json
import os
import signal
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from botocore.exceptions import BotoCoreError, ClientError
from images import ROOT, docker

from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client

S3, SEARCH = "http://127.0.0.1:8333", "http://127.0.0.1:7700"
PROMETHEUS, GRAFANA = "http://127.0.0.1:9090", "http://127.0.0.1:3000"
POLL_S = 0.5
COMMAND_S = 1200
ONE_SHOTS = ("volumes", "begin")


class Stack:
    """One deployment. ``patience`` multiplies every bound: a shared machine is slower."""

    def __init__(self, project: str, folder: Path, patience: float) -> None:
        """Write its .env as a user would, unless it is there; start nothing."""
        self.project = project
        self.patience = patience
        self.env_file = folder / "env"
        if not self.env_file.exists():
            folder.mkdir(exist_ok=True)
            subprocess.run(["sh", ROOT / "deploy/compose-env.sh", self.env_file], check=True)
        lines = self.env_file.read_text().splitlines()
        self.env = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
        self.secrets = {x.name: x.read_text() for x in Path(self.env["SECRETS"]).iterdir()}
        self.variables = {"COMPOSE_PROJECT_NAME": project, "COMPOSE_ENV_FILES": str(self.env_file)}

    def compose(self, *arguments: str, **variables: str) -> str:
        """Run `docker compose` in the checkout; return its output, or raise with it."""
        return self.shell(["docker", "compose", *arguments], **variables)

    def shell(self, command: list[str], **variables: str) -> str:
        """Run a command where `docker compose` means this deployment."""
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=COMMAND_S,
            env=os.environ | self.variables | variables, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            words = " ".join(command)
            raise RuntimeError(f"{words}: {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def operator(self, *arguments: str) -> str:
        """Run a command of audiofuse in the operator's container."""
        return self.compose("run", "--rm", "--no-TTY", "operator", *arguments)

    def down(self) -> None:
        """Take everything away, volumes too."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "60")

    def containers(self, *services: str) -> dict[str, dict[str, Any]]:
        """Return what `docker inspect` says of each container, by its name."""
        ids = self.compose("--profile", "*", "ps", "--all", "--quiet", *services).split()
        found = json.loads(docker("inspect", *ids)) if ids else []
        return {each["Name"].removeprefix(f"/{self.project}-"): each for each in found}

    def running(self) -> dict[str, dict[str, Any]]:
        """Return the containers that run."""
        return {name: each for name, each in self.containers().items() if each["State"]["Running"]}

    def until(self, look: Callable[[], object], what: str, seconds: float) -> float:
        """Look until it is true; return the seconds that took, or raise ``AssertionError``."""
        started = time.monotonic()
        problem = "not yet"
        while True:
            try:
                if look():
                    return time.monotonic() - started
            except (OSError, httpx.HTTPError, BotoCoreError, ClientError, RuntimeError) as error:
                problem = repr(error)[:300]
            if time.monotonic() - started > seconds * self.patience:
                raise AssertionError(f"{what}: {problem} after {seconds * self.patience:.0f} s")
            time.sleep(POLL_S)

    def unhealthy(self) -> list[str]:
        """Return what is not as it has to be: healthy, or for a one-shot ended well."""
        wrong = []
        for name, each in self.containers().items():
            state = each["State"]
            if name.rsplit("-", 1)[0] in ONE_SHOTS:
                good = state["Status"] == "exited" and state["ExitCode"] == 0
            else:
                good = state.get("Health", {}).get("Status") == "healthy"
            wrong += [] if good else [name]
        return wrong

    def until_healthy(self, seconds: float) -> float:
        """Wait until everything is healthy."""
        return self.until(lambda: not self.unhealthy(), f"healthy, not {self.unhealthy()}", seconds)

    def kill(self, service: str) -> None:
        """Kill a service's process, which Docker takes for a crash, and not for a stop."""
        for each in self.containers(service).values():
            os.kill(each["State"]["Pid"], signal.SIGKILL)

    def logs(self, *services: str) -> str:
        """Return what services have logged."""
        return self.compose("logs", "--no-color", *services)

    # -- what a user does --------------------------------------------------------------------

    def s3(self) -> Any:
        """Return an S3 client with the key of who uploads."""
        return s3_client(
            Settings(
                _env_file=None, s3_endpoint_url=S3, s3_access_key_id="uploader",
                s3_secret_access_key=self.secrets["s3_uploader"],
            )
        )  # fmt: skip

    def upload(self, key: str, body: bytes | Path) -> None:
        """Put an object; try again while storage is away."""
        data = body.read_bytes() if isinstance(body, Path) else body

        def put() -> bool:
            self.s3().put_object(Bucket="sounds", Key=key, Body=data)
            return True

        self.until(put, f"put {key}", 60)

    def search(self, question: str, **options: object) -> list[dict[str, Any]]:
        """Return the hits of a question over HTTP."""
        answer = httpx.get(
            f"{SEARCH}/v1/search", params={"q": question, **options}, timeout=30,
            headers={"Authorization": f"Bearer {self.secrets['search_key']}"},
        )  # fmt: skip
        answer.raise_for_status()
        return list(answer.json()["hits"])

    def found(self, key: str) -> bool:
        """Whether a question finds an object."""
        return key in [hit["key"] for hit in self.search("an owl", prefix=key)]

    def keys(self) -> set[str]:
        """Return the keys of all items."""
        return {hit["key"] for hit in self.search("sound", limit=1000)}

    def live(self) -> str:
        """Return which encoder is live."""
        shown = json.loads(self.operator("rollout", "status", "--json"))
        return str(shown["live"])

    # -- what it tells -----------------------------------------------------------------------

    def prometheus(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of Prometheus's API."""
        query = urllib.parse.urlencode(parameters)
        answer = httpx.get(f"{PROMETHEUS}/api/v1/{path}?{query}", timeout=20)
        answer.raise_for_status()
        return answer.json()["data"]

    def counted(self, query: str) -> float:
        """Return the sum of a query's samples."""
        return sum(
            float(each["value"][1]) for each in self.prometheus("query", query=query)["result"]
        )

    def targets(self) -> dict[str, str]:
        """Return the health of each target by its job and address."""
        listed = self.prometheus("targets", state="active")["activeTargets"]
        return {f"{x['labels']['job']} {x['labels']['instance']}": x["health"] for x in listed}
