"""``audiofuse up`` as a person sees it: what it tells, and how other shells find it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from bundles import saved_bundle

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import PREFIX
from audiofuse.core.storage.mounts import read_mounts
from audiofuse.workers.commands.up import _settings

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds" / "animals"
UP = [sys.executable, "-u", "-m", "audiofuse", "up", "--bucket"]


def _audiofuse(*arguments: str) -> dict[str, Any]:
    """Return what a command prints as JSON in a shell that was told of no home."""
    environment = {name: each for name, each in os.environ.items() if name != PREFIX + "HOME"}
    done = subprocess.run(
        [sys.executable, "-m", "audiofuse", *arguments, "--json"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["one", "two=three/"], {"one": "{here}/one", "two": "{here}/three"}),
        (
            ["s3://field", "far=s3://field/2026/"],
            {"field": "s3://field", "far": "s3://field/2026/"},
        ),
        (["a=b/c", "./d=e/f"], {"a": "{here}/b/c", "f": "{here}/d=e/f"}),
    ],
)
def test_several_buckets_are_called_like_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], names: dict[str, str]
) -> None:
    """Unless they are given a name; wherever other commands are run they mean the same folders."""
    monkeypatch.chdir(tmp_path)
    mounts = {each.name: each.address for each in read_mounts(_settings(given))}
    assert mounts == {name: address.format(here=tmp_path) for name, address in names.items()}


def test_what_is_to_be_indexed_has_to_be_said() -> None:
    """With a name, where the folder's own cannot be one, and another for each."""
    for given, said in (([], "--bucket FOLDER"), (["a", "my sounds"], "name=my sounds")):
        with pytest.raises(ConfigurationError, match=said):
            _settings(given)
    with pytest.raises(ConfigurationError, match="two buckets are called sounds"):
        read_mounts(_settings(["a/sounds", "b/sounds"]))


@pytest.mark.timeout(600)  # everything in it is bounded by progress
def test_up_tells_how_it_goes(
    tmp_path: Path, tiny_encoder: Encoder, eventually: Callable[..., Any]
) -> None:
    """Until it is in step, then each change; any shell finds it, also in a home of its own."""
    bucket, log, home = tmp_path / "bucket", tmp_path / "up.log", tmp_path / "mine"
    shutil.copytree(SOUNDS, bucket)
    sounds = sum(path.suffix != ".json" for path in bucket.iterdir())
    (bucket / "bad.wav").write_text("no sound")
    encoder = saved_bundle(tiny_encoder, tmp_path, "tiny", "")
    environment = os.environ | {PREFIX + "HOME": str(home), PREFIX + "ENCODER": str(encoder)}
    with log.open("wb") as file:
        up = subprocess.Popen([*UP, str(bucket)], env=environment, stdout=file, stderr=file)
    try:

        def moves() -> list[Any]:
            process = psutil.Process(up.pid)
            return [process.cpu_times(), *map(str, process.children(recursive=True))]

        def told(line: str) -> None:
            eventually(lambda: line in log.read_text() or up.poll(), 120, moves)
            assert line in log.read_text()

        told(f"in step with the bucket: {sounds} sounds are indexed; 1 rejected: audiofuse dead")
        shutil.copy(bucket / "owl.wav", bucket / "another owl.wav")
        told("indexed   another owl.wav\n")
        (bucket / "bad.wav").write_text("no sound either")
        told("rejected  bad.wav: not_audio, ")
        (bucket / "another owl.wav").unlink()
        told("removed   1 sound\n")
        assert _audiofuse("settings")["AUDIOFUSE_BUCKET"] == {
            "value": str(bucket), "from": "local deployment",
        }  # fmt: skip
        assert len(_audiofuse("search", "an owl", "--limit", "2")["hits"]) == 2
    finally:
        up.send_signal(signal.SIGINT)
        up.wait()
    assert _audiofuse("settings")["AUDIOFUSE_BUCKET"]["from"] == "default"
    assert "\x1b" not in log.read_text()
