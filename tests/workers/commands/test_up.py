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
from audiofuse.core.settings import PREFIX

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
