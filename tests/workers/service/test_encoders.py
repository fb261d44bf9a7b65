"""Query towers as files: packed once for a version, gone with it."""

import io
import zipfile
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from audiofuse.workers.service import encoders
from audiofuse.workers.service.encoders import PackedTowers


def test_the_query_tower_can_be_fetched(client: TestClient, version: Path) -> None:
    """The tower of a loaded version comes as a ZIP file that equals the bundle's folder."""
    answer = client.get(f"/v1/encoders/{version.name}/query.zip")
    assert "immutable" in answer.headers["cache-control"]
    packed = zipfile.ZipFile(io.BytesIO(answer.content))
    for path in (version / "query").rglob("*.*"):
        assert packed.read(path.relative_to(version / "query").as_posix()) == path.read_bytes()
    for other in ("tiny-111111", "..", "%2e%2e"):
        assert client.get(f"/v1/encoders/{other}/query.zip").status_code == 404


def test_a_tower_is_packed_once_however_often_it_is_fetched(
    client: TestClient, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer is the first one's file."""
    packed, pack = [], encoders._pack

    def counted(folder: Path, path: Path) -> None:
        packed.append(folder)
        pack(folder, path)

    monkeypatch.setattr(encoders, "_pack", counted)
    answers = [client.get(f"/v1/encoders/{version.name}/query.zip").content for _ in range(3)]
    assert len(set(answers)) == 1
    assert packed == [version / "query"]


def test_a_packed_tower_goes_with_its_version(version: Path) -> None:
    """Files of versions that are kept stay, all others are deleted, and can be packed anew."""
    towers = PackedTowers(lambda _: version)
    old, new = towers.file("old-1"), towers.file("new-2")
    towers.keep({"new-2", "other-3"})
    assert (old.exists(), new.exists()) == (False, True)
    assert towers.file("old-1").exists()
