"""The local deployment: real processes, from a dropped file to a found one, none left over."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from bundles import saved_bundle

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.deployment import local
from audiofuse.workers.deployment.local import DeploymentError, LocalDeployment, Part, stop_all
from audiofuse.workers.deployment.status import Status, read_status
from audiofuse.workers.service.client import ask

Eventually = Callable[..., Any]
SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
ROOSTER = SOUNDS / "animals/field-recording-07.flac"
ODD = "a b/ü + 50%41 'x'.wav"


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, default_bundle: Path
) -> Iterator[LocalDeployment]:
    """Run the whole deployment, with the shipped encoder, for a bucket with one sound in it."""
    root = tmp_path_factory.mktemp("deployment")
    (root / "bucket").mkdir()
    shutil.copy(ROOSTER, root / "bucket" / "before.flac")
    settings = Settings(
        home=root / "home", bucket=str(root / "bucket"), encoder=default_bundle, max_duration_s=60
    )
    with LocalDeployment(settings) as running:
        yield running


@pytest.fixture
def bucket(deployment: LocalDeployment) -> Path:
    """Return the folder that the deployment watches."""
    return Path(deployment.settings.bucket)


def _found(deployment: LocalDeployment, query: str, limit: int = 100) -> dict[str, Any]:
    return {hit["key"]: hit for hit in ask(deployment.settings.search_url, query, limit)}


def _status(deployment: LocalDeployment) -> Status:
    return read_status(deployment.settings)


@pytest.mark.timeout(180)
def test_what_was_there_before_is_found(
    deployment: LocalDeployment, eventually: Eventually
) -> None:
    """A sound that lay in the folder before anything ran is indexed, and found by listening."""
    hit = eventually(lambda: _found(deployment, "a rooster crowing").get("before.flac"))
    assert hit["audio"] > 0.3
    assert hit["metadata"] == pytest.approx(0, abs=1e-4)


def test_a_dropped_sound_is_found_and_a_deleted_one_gone(
    deployment: LocalDeployment, bucket: Path, eventually: Eventually
) -> None:
    """A sound with an awkward name comes, gets words, and goes, and each time the search knows."""
    (bucket / ODD).parent.mkdir()
    shutil.copy(SOUNDS / "animals/owl.wav", bucket / ODD)
    eventually(lambda: ODD in _found(deployment, "an owl"))
    (bucket / (ODD + ".json")).write_text('{"title": "Tawny owl calling"}')
    eventually(lambda: _found(deployment, "an owl")[ODD]["payload"]["title"])
    assert next(iter(_found(deployment, "a tawny owl calling"))) == ODD
    (bucket / ODD).unlink()
    eventually(lambda: ODD not in _found(deployment, "an owl"))


def test_a_folder_that_comes_or_goes_takes_its_sounds_along(
    deployment: LocalDeployment, bucket: Path, eventually: Eventually
) -> None:
    """A whole folder moved in is indexed, renamed is followed, and moved out is forgotten."""
    shutil.copytree(SOUNDS / "home", bucket.parent / "outside")
    (bucket.parent / "outside").rename(bucket / "in")
    eventually(lambda: "in/typing.mp3" in _found(deployment, "typing"))
    (bucket / "in").rename(bucket / "renamed")
    eventually(lambda: "renamed/typing.mp3" in _found(deployment, "typing"))
    eventually(lambda: "in/typing.mp3" not in _found(deployment, "typing"))
    (bucket / "renamed").rename(bucket.parent / "away")
    eventually(lambda: "renamed/typing.mp3" not in _found(deployment, "typing"))


def test_a_stem_sidecar_finds_its_sound(
    deployment: LocalDeployment, bucket: Path, eventually: Eventually
) -> None:
    """``crow.json`` that arrives after ``crow.flac`` gives it its words."""
    shutil.copy(SOUNDS / "animals/crow.flac", bucket / "crow.flac")
    eventually(lambda: "crow.flac" in _found(deployment, "a crow"))
    (bucket / "crow.json").write_text('{"title": "Carrion crow"}')
    eventually(lambda: _found(deployment, "a crow")["crow.flac"]["payload"]["title"])


def test_bad_input_ends_as_one_recorded_reason_each(
    deployment: LocalDeployment, bucket: Path, eventually: Eventually
) -> None:
    """Each bad object is a dead letter that names it and its reason, and the rest goes on."""
    (bucket / "empty.wav").write_bytes(b"")
    (bucket / "text.mp3").write_text("no sound")
    (bucket / "cut.flac").write_bytes(ROOSTER.read_bytes()[:9000])
    with (bucket / "ten hours.wav").open("wb") as file:  # a sparse file: 8 kHz, 8 bit, mono
        size = 10 * 3600 * 8000
        header = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0data%s"
        file.write(header % ((size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")))
        file.truncate(size + 44)
    shutil.copy(SOUNDS / "water/bubbles.opus", bucket / "fine.opus")
    (bucket / "fine.opus.json").write_text('{"title": ["not", "a", "string"]}')
    expected = {
        "empty.wav": "empty",
        "text.mp3": "not_audio",
        "cut.flac": "damaged",
        "ten hours.wav": "too_long",
        "fine.opus.json": "bad_sidecar",
    }

    def reasons() -> bool:
        letters = {each.key: str(each.reason) for each in _status(deployment).latest}
        return expected.items() <= letters.items()

    eventually(reasons)
    assert "fine.opus" in _found(deployment, "bubbles")
    for key in expected:
        (bucket / key).unlink()
    shutil.copy(ROOSTER, bucket / "text.mp3")  # a sound now, whatever its suffix says
    eventually(lambda: _status(deployment).dead_letters == 0)
    assert "text.mp3" in _found(deployment, "a rooster")


def test_the_command_line_asks_the_running_deployment(deployment: LocalDeployment) -> None:
    """Search and status find the deployment by its home alone."""
    environment = os.environ | {PREFIX + "HOME": str(deployment.settings.home)}

    def run(*command: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "audiofuse", *command, "--json"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    assert len(run("search", "a rooster", "--limit", "1")["hits"]) == 1
    assert run("status")["version"].startswith("default-")


def test_parts_stop_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Many that do not end when they are asked to cost the patience for one."""
    monkeypatch.setattr(local, "STOP_TIMEOUT_S", 1.0)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    command, log = [sys.executable, "-c", f"{deaf}; time.sleep(60)"], tmp_path / "log"
    parts = [Part("deaf", command, os.environ, log.with_suffix(f".{n}")) for n in range(4)]
    for n in range(4):
        eventually(lambda n=n: log.with_suffix(f".{n}").read_text())
    started = time.monotonic()
    stop_all(parts)
    assert time.monotonic() - started < 3
    assert {part.process.returncode for part in parts} == {-signal.SIGKILL}


def test_a_second_deployment_in_the_same_home_is_refused(deployment: LocalDeployment) -> None:
    """Two deployments never share a queue and an index by accident."""
    with (
        pytest.raises(ConfigurationError, match="already runs"),
        LocalDeployment(deployment.settings),
    ):
        pass


@pytest.fixture
def small(tmp_path: Path, tiny_encoder: Encoder) -> Settings:
    """Return settings of a deployment that starts fast, for an empty bucket."""
    (tmp_path / "bucket").mkdir()
    bundle = saved_bundle(tiny_encoder, tmp_path, "tiny", "")
    return Settings(home=tmp_path / "home", bucket=str(tmp_path / "bucket"), encoder=bundle)


@pytest.mark.parametrize(("part", "threads"), [("worker", 7), ("search", 4)])
def test_parts_share_the_cores(
    small: Settings, monkeypatch: pytest.MonkeyPatch, part: str, threads: int
) -> None:
    """No part computes with more threads than its share of the CPUs that this process may use."""
    monkeypatch.setattr(local, "usable_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (small.home / "logs").mkdir(parents=True)
    deployment = LocalDeployment(small)
    script = "import os; print(os.environ['OMP_NUM_THREADS'])"
    deployment._run(part, [sys.executable, "-c", script])
    deployment._parts[0].process.wait()
    assert (small.home / "logs" / f"{part}.log").read_text() == f"{threads}\n"


@pytest.mark.timeout(180)
def test_a_part_that_dies_ends_the_deployment(small: Settings) -> None:
    """When the worker is killed the deployment names it, and stops all others."""
    with LocalDeployment(small) as deployment:
        processes = [part.process for part in deployment._parts]
        worker = next(part for part in deployment._parts if part.name == "worker")
        deployment.watch()
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(DeploymentError, match=r"worker ended with code -9"):
            deployment.watch()
    assert all(process.poll() is not None for process in processes)
    assert not (small.home / "deployment.env").exists()


@pytest.mark.timeout(600)  # everything in it is bounded by progress
@pytest.mark.parametrize(
    ("how", "when", "code"),
    [
        (signal.SIGINT, "worker", 0),
        (signal.SIGINT, "ready", 0),
        pytest.param(
            signal.SIGKILL, "worker", -signal.SIGKILL,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl"),
        ),
    ],
)  # fmt: skip
def test_no_process_is_left_behind(
    small: Settings, how: int, when: str, code: int, eventually: Eventually
) -> None:
    """However and whenever ``audiofuse up`` is ended, every process that it started ends too."""
    environment = os.environ | {
        PREFIX + "HOME": str(small.home),
        PREFIX + "ENCODER": str(small.encoder),
    }
    command = [
        sys.executable,
        "-u",
        "-m",
        "audiofuse.workers.commands.main",
        "up",
        "--bucket",
        small.bucket,
    ]
    log = small.home.parent / "up.log"
    with log.open("wb") as file:
        up = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    with up:
        try:
            moves = partial(_cpu_times, up.pid)
            if when == "ready":
                eventually(lambda: "ready" in log.read_text(), moves=moves)
            else:
                eventually((small.home / "logs" / f"{when}.log").exists, moves=moves)
            children = psutil.Process(up.pid).children(recursive=True)
            assert children
            up.send_signal(how)
            eventually(lambda: up.poll() is not None, moves=moves)
            assert up.returncode == code, log.read_text()
        finally:
            up.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def test_an_interruption_that_was_lost_is_made_up_for(small: Settings) -> None:
    """What Ctrl-C raised may vanish, as around a fork: the next look at the parts raises it."""
    interrupted, before = threading.Event(), set(psutil.Process().children(recursive=True))
    interrupted.set()
    with pytest.raises(KeyboardInterrupt), LocalDeployment(small, interrupted):
        pass
    assert set(psutil.Process().children(recursive=True)) <= before


def _cpu_times(pid: int) -> list[object]:
    """Return what changes as long as a process or a child of it does anything."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    times: list[object] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            times.append(process.cpu_times())
    return times
