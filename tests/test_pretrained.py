"""Pretrained parts are what was released, or an error that says what to do; none is ever run."""

import csv
import hashlib
import os
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import ConfigurationError
from core.mobilenet import AUDIOSET_CLASSES
from core.pretrained import (
    CLASS_NAMES,
    MN04,
    Source,
    load_checkpoint,
    locate,
    read_class_names,
)

CONTENT = b"released weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:1/weights.pt"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach this machine directly, however it reaches others."""
    monkeypatch.setenv("no_proxy", "*")


class _Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Serve a folder that holds ``weights.pt`` and return its URL."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "weights.pt").write_bytes(CONTENT)
    handler = partial(_Quiet, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_a_file_in_the_folder_is_taken_without_asking_anybody(tmp_path: Path, sha256: str) -> None:
    """What is there is used, whether or not its checksum is known."""
    (tmp_path / "weights.pt").write_bytes(CONTENT)
    source = Source("weights.pt", NOWHERE, sha256)
    assert locate(source, tmp_path) == tmp_path / "weights.pt"


def test_a_file_that_is_not_the_released_one_is_refused(tmp_path: Path) -> None:
    """A file with another checksum is named with both checksums, and is left to its owner."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"other weights")
    with pytest.raises(ConfigurationError, match=f"{path} is not the released file") as caught:
        locate(Source("weights.pt", NOWHERE, SHA256), tmp_path)
    assert SHA256 in str(caught.value)
    assert path.read_bytes() == b"other weights"


@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_what_is_not_there_is_downloaded_once(site: str, tmp_path: Path, sha256: str) -> None:
    """The download makes the folder, is stored under its name, and is not repeated."""
    folder = tmp_path / "new" / "folder"
    path = locate(Source("weights.pt", f"{site}/weights.pt", sha256), folder)
    assert path == folder / "weights.pt"
    assert path.read_bytes() == CONTENT
    assert [each.name for each in folder.iterdir()] == ["weights.pt"]
    (tmp_path / "site" / "weights.pt").unlink()
    assert locate(Source("weights.pt", f"{site}/weights.pt", sha256), folder) == path


def test_a_download_that_fails_its_checksum_is_not_kept(site: str, tmp_path: Path) -> None:
    """What was tampered with on the way never gets into the folder."""
    (tmp_path / "site" / "weights.pt").write_bytes(b"tampered with")
    folder = tmp_path / "folder"
    url = f"{site}/weights.pt"
    with pytest.raises(ConfigurationError, match=f"{url} fails its checksum"):
        locate(Source("weights.pt", url, SHA256), folder)
    assert list(folder.iterdir()) == []


def test_a_download_that_cannot_be_had_says_what_to_do(tmp_path: Path) -> None:
    """The error names the file, the folder and the URL, and both ways out; nothing is left over."""
    folder = tmp_path / "folder"
    with pytest.raises(ConfigurationError) as caught:
        locate(Source("weights.pt", NOWHERE, SHA256), folder)
    for word in ("weights.pt", str(folder), NOWHERE, "put the file there", "AUDIOFUSE_PRETRAINED"):
        assert word in str(caught.value)
    assert list(folder.iterdir()) == []


def test_what_is_loaded_by_default_is_pinned() -> None:
    """The checkpoint comes over TLS and has a checksum in the code."""
    assert MN04.url.startswith("https://")
    assert len(bytes.fromhex(MN04.sha256)) == 32


def test_the_released_checkpoint_is_the_pinned_one(shared: Path) -> None:
    """The checksum in the code is that of EfficientAT's released file, which loads as tensors."""
    state = load_checkpoint(locate(MN04, shared / "weights"))
    assert state["classifier.5.weight"].shape[0] == AUDIOSET_CLASSES


def test_a_checkpoint_of_tensors_is_read(tmp_path: Path) -> None:
    """A flat state dict comes back as it was saved."""
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
    torch.save(state, tmp_path / "c.pt")
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


class _Payload:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("as_zip", [True, False], ids=["torch", "bare pickle"])
def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path: Path, *, as_zip: bool) -> None:
    """A pickle that would run something is an error, and what it would do has not happened."""
    path, target = tmp_path / "evil.pt", tmp_path / "owned"
    evil = {"weight": _Payload(target)}
    if as_zip:
        torch.save(evil, path)
    else:
        path.write_bytes(pickle.dumps(evil))
    with pytest.raises(ConfigurationError, match=str(path)):
        load_checkpoint(path)
    assert not target.exists()
    torch.load(path, weights_only=False) if as_zip else pickle.loads(path.read_bytes())
    assert target.exists()  # it was a real threat


@pytest.mark.parametrize(
    "state",
    [
        [torch.ones(1)],
        torch.ones(1),
        {"weight": torch.ones(1), "epoch": 5},
        {"model": {"weight": torch.ones(1)}},
        {"weight": "text"},
        {"weight": None},
    ],
)
def test_a_state_that_is_not_flat_tensors_is_refused(tmp_path: Path, state: object) -> None:
    """Lists, nested states and other values beside tensors are no checkpoint of ours."""
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ConfigurationError, match="not a flat state dict"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04cut off", None])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A file that torch cannot read, or that is not there, is named in a configuration error."""
    path = tmp_path / "c.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        load_checkpoint(path)


def _write_names(path: Path, count: int) -> Path:
    """Write class names in AudioSet's form; the first holds a comma and the second quotes."""
    names = ["Speech, male", 'A "quoted" näme', *(f"Class {n}" for n in range(2, count))][:count]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "mid", "display_name"])
        writer.writerows([number, f"/m/{number}", name] for number, name in enumerate(names))
    return path


def test_class_names_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Names with commas, quotes and umlauts are whole, one for each logit."""
    names = read_class_names(_write_names(tmp_path / "names.csv", AUDIOSET_CLASSES))
    assert names[:3] == ["Speech, male", 'A "quoted" näme', "Class 2"]
    assert len(names) == AUDIOSET_CLASSES


def test_the_released_class_names_are_read(shared: Path) -> None:
    """AudioSet's own file begins with speech and ends with a field recording."""
    names = read_class_names(shared / "data" / "text" / CLASS_NAMES.name)
    assert (names[0], names[-1]) == ("Speech", "Field recording")


@pytest.mark.parametrize("count", [0, 1, AUDIOSET_CLASSES - 1, AUDIOSET_CLASSES + 1])
def test_class_names_of_another_count_are_refused(tmp_path: Path, count: int) -> None:
    """A list that does not match the logits would name every sound wrongly."""
    path = _write_names(tmp_path / "names.csv", count)
    with pytest.raises(ConfigurationError, match=f"names {count} classes, not {AUDIOSET_CLASSES}"):
        read_class_names(path)
