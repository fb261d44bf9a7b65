"""The examples beside the project do what they say."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from scripts import load_script

EXAMPLES = Path(__file__).parents[4] / "examples"
GONG = EXAMPLES / "sounds" / "music" / "gong.ogg"


@pytest.fixture
def _asked(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs that are told nothing else ask the service of these tests."""
    monkeypatch.setenv("AUDIOFUSE_SEARCH_URL", url)
    monkeypatch.setenv("AUDIOFUSE_SEARCH_KEY", key)


@pytest.mark.usefixtures("_asked")
def test_an_application_shows_hits() -> None:
    """A page of one's own has players, escapes what was typed, and tells what is asked wrongly."""
    with TestClient(load_script("web_app", EXAMPLES).app) as browser:
        page = browser.get("/", params={"q": "a gong <b>"}).text
        assert "music/gong.ogg" in page
        assert re.search(r'<audio [^>]*src="http[^"]+signature=', page)
        assert "a gong &lt;b&gt;" in page
        assert browser.get("/").status_code == 200
        assert browser.get("/", params={"q": "x" * 10_000}).status_code == 422


@pytest.mark.usefixtures("_asked")
def test_the_notebook_runs() -> None:
    """Each of its cells runs after the others, and hits show as a table with players."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    names: dict[str, Any] = {}
    cells = ["".join(each["source"]) for each in notebook["cells"] if each["cell_type"] == "code"]
    for code in cells:
        exec(compile(code, "cell", "exec"), names)
    with names["client"]:  # which a notebook keeps as long as it runs
        pass
    assert names["sound"]
    assert "<audio" in names["hits"]._repr_html_()


def test_what_a_form_uploads_lies_in_the_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound and its words come as object and sidecar, names never clash, and no text is taken."""
    monkeypatch.setenv("UPLOADS", str(tmp_path))
    form = {"title": "A gong", "tags": "gong, metal,"}
    with TestClient(load_script("upload_hook", EXAMPLES).app) as browser:
        names = [
            browser.post(
                "/sounds", data=form, files={"sound": ("../my gong.OGG", GONG.read_bytes())}
            ).json()["name"]
            for _ in range(2)
        ]
        refused = browser.post("/sounds", data=form, files={"sound": ("a.txt", b"text")})
        assert refused.status_code == 415
    assert sorted(tmp_path.iterdir()) == sorted(
        tmp_path / (name + end) for name in names for end in ("", ".json")
    )
    assert (tmp_path / names[0]).read_bytes() == GONG.read_bytes()
    words = json.loads((tmp_path / f"{names[0]}.json").read_text())
    assert words == {"title": "A gong", "description": "", "keywords": ["gong", "metal"]}


@pytest.mark.skipif(not shutil.which("rclone"), reason="needs rclone (apt install rclone)")
def test_a_folder_of_a_daw_is_kept(tmp_path: Path) -> None:
    """Sounds and sidecars go, projects and what is still written stay, and deletions follow."""
    studio, bucket = tmp_path / "studio", tmp_path / "bucket"
    studio.mkdir()
    for name in ("a.wav", "b.WAV.json", "b.flac", "song.rpp", "late.wav"):
        (studio / name).write_text(name)
        if name != "late.wav":
            os.utime(studio / name, (0, 0))
    command = [str(EXAMPLES / "daw_folder.sh"), str(studio), str(bucket)]
    environment = os.environ | {"RCLONE_CONFIG": str(tmp_path / "none")}
    for gone in ("", "a.wav"):
        (studio / gone).unlink() if gone else None
        subprocess.run(command, check=True, capture_output=True, env=environment)
        kept = {path.name for path in bucket.iterdir()}
        assert kept == {"a.wav", "b.WAV.json", "b.flac"} - {gone}
