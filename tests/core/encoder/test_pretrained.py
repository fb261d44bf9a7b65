"""Pretrained parts are what was released, or an error that says what to do; none is ever run."""

import csv
import errno
import gc
import hashlib
import os
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from audiofuse.core.encoder import pretrained
from audiofuse.core.encoder.pretrained import (
    CLASS_NAMES,
    RELEASE,
    RELEASED,
    Source,
    audio_shape,
    checkpoint_source,
    find_checkpoint,
    load_checkpoint,
    locate,
    read_class_names,
)
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import AudioConfig
from audiofuse.core.model.mobilenet import AUDIOSET_CLASSES, MobileNet

CONTENT = b"released weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:1/weights.pt"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach this machine directly, however it reaches others."""
    monkeypatch.setenv("no_proxy", "*")


class _Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing; the content of a ``.raw`` file is the whole answer."""

    def do_GET(self) -> None:
        """Answer as a broken server may, if asked to."""
        if self.path.endswith(".raw"):
            self.wfile.write(Path(self.translate_path(self.path)).read_bytes())
        else:
            super().do_GET()

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
    (tmp_path / "plain").touch()  # a shared folder serves all whom the umask lets read
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
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


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"garbage\r\n\r\n",
        b"",
    ],
    ids=["missing", "cut off", "no HTTP", "nothing"],
)
def test_a_broken_download_says_what_to_do(site: str, tmp_path: Path, answer: bytes) -> None:
    """Whatever else comes than the file leaves nothing behind, neither a file nor a connection."""
    (tmp_path / "site" / "weights.raw").write_bytes(answer)
    folder = tmp_path / "folder"
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_PRETRAINED"):
        locate(Source("weights.pt", f"{site}/weights.raw"), folder)
    assert list(folder.iterdir()) == []
    gc.collect()  # a connection left open is a warning, which is an error here


def test_a_disk_that_fills_up_keeps_nothing(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of a download goes when the disk is full, and the error says what to do."""

    def fill(_answer: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pretrained.shutil, "copyfileobj", fill)
    folder = tmp_path / "folder"
    with pytest.raises(ConfigurationError, match="No space left"):
        locate(Source("weights.pt", f"{site}/weights.pt"), folder)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    """A file in the folder's place is told like a download that cannot be had."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_PRETRAINED"):
        locate(Source("weights.pt", NOWHERE), tmp_path / "file" / "folder")


def test_what_is_loaded_by_default_is_pinned() -> None:
    """The checkpoint comes over TLS and has a checksum in the code; the class names by TLS."""
    assert CLASS_NAMES.url.startswith("https://")
    source = checkpoint_source("mn04_as")
    assert source.url.startswith("https://")
    assert len(bytes.fromhex(source.sha256)) == 32


def test_the_released_checkpoint_is_the_pinned_one(shared: Path) -> None:
    """The checksum in the code is that of EfficientAT's released file, which loads as tensors."""
    shape, state = find_checkpoint("mn04_as", shared / "weights")
    assert shape.width == 0.4
    assert state["classifier.5.weight"].shape[0] == AUDIOSET_CLASSES


@pytest.mark.parametrize(
    ("name", "file", "shape"),
    [
        ("mn01_as", "mn01_as_mAP_298.pt", {"width": 0.1}),
        ("mn40_as_ext", "mn40_as_ext_mAP_487.pt", {"width": 4.0}),
        ("mn40_as_mAP_483(2).pt", "mn40_as_mAP_483(2).pt", {"width": 4.0}),
        ("mn10_as_hop_15", "mn10_as_hop_15_mAP_463.pt", {"width": 1.0, "hop_samples": 480}),
        ("mn10_as_mels_256", "mn10_as_mels_256_mAP_474.pt", {"width": 1.0, "mel_bands": 256}),
        (
            "mn10_as_fc_s2211",
            "mn10_as_fc_s2211_mAP_466.pt",
            {"width": 1.0, "classifier": "fully_convolutional", "strides": (2, 2, 1, 1)},
        ),
    ],
)
def test_a_name_tells_the_file_and_its_shape(
    name: str, file: str, shape: dict[str, object]
) -> None:
    """A released name is one file of the release, whose name tells the front end and the tower."""
    source = checkpoint_source(name)
    assert source.name == file
    assert source.url == RELEASE + file.replace("(", "%28").replace(")", "%29")
    assert audio_shape(file) == AudioConfig.model_validate(shape)


@pytest.mark.parametrize("file", RELEASED)
def test_every_released_checkpoint_has_a_shape(file: str) -> None:
    """Each file of the release is found by its own name and describes a tower that builds."""
    shape = audio_shape(checkpoint_source(file).name)
    with torch.device("meta"):
        MobileNet(shape.width, shape.classifier, shape.strides)


def test_a_url_may_carry_its_checksum() -> None:
    """What follows #sha256= is checked, and is no part of the address."""
    source = checkpoint_source("https://example.org/a/mn05_mine.pt#sha256=abc")
    assert source == Source("mn05_mine.pt", "https://example.org/a/mn05_mine.pt", "abc")


def test_a_file_of_ones_own_is_found_by_its_path(tmp_path: Path) -> None:
    """A path needs no release: its name tells the width, its content the weights."""
    path = tmp_path / "mn01_mine.pt"
    torch.save(MobileNet(0.1).state_dict(), path)
    shape, state = find_checkpoint(str(path), tmp_path / "elsewhere")
    MobileNet(shape.width).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "message"), [("mn11_as", "released are mn01_as, mn02_as"), ("", "released are")]
)
def test_an_unknown_name_tells_the_known_ones(name: str, message: str, tmp_path: Path) -> None:
    """What is no name, file or URL is an error that lists what is released."""
    with pytest.raises(ConfigurationError, match=message):
        find_checkpoint(name, tmp_path)


def test_a_file_that_does_not_tell_its_width_is_refused() -> None:
    """Without a width in its name a checkpoint is not guessed at."""
    with pytest.raises(ConfigurationError, match=r"weights\.pt"):
        audio_shape("weights.pt")


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


@pytest.mark.parametrize(
    "content",
    [
        b"<html>log in</html>\n<p>",
        "index,mid,display_name\n0,/m/0,Türe\n".encode("latin-1"),
        None,
    ],
    ids=["web page", "no UTF-8", "missing"],
)
def test_what_is_no_list_of_class_names_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A file that holds no class names, or is not there, is named in a configuration error."""
    path = tmp_path / "names.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        read_class_names(path)
