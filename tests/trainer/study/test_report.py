"""The report of a training: one page that needs nothing else and says what was measured."""

import base64
import io
import json
import re
import wave
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.clips import Clip, Query, queries_of
from audiofuse.core.evaluation.evaluation import Gallery, QueryScores, encode_clips
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import TINY
from audiofuse.trainer.study import report
from audiofuse.trainer.study.assessment import Assessment, Slice, System, assess
from audiofuse.trainer.study.report import Story, place_in_plane, write_report

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
NASTY = "<script>alert('1')</script> & \"><img src=http://evil.example/x.png>"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a browser would see of a page: elements, and the words inside some of them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.articles: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element, and begin what it begins."""
        self.elements.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag in {"caption", "tr"}:
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")
        elif tag == "article":
            self.articles.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element that holds nothing."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Hold that elements are nested."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep words that are seen, in a table also by cell."""
        words = " ".join(data.split())
        if not words or "style" in self._open:
            return
        self.text += words + " "
        if "article" in self._open:
            self.articles[-1] += words + " "
        if "caption" in self._open:
            self.tables[-1][-1].append(words)
        elif {"td", "th"} & {*self._open}:
            self.tables[-1][-1][-1] += words

    def attributes(self, tag: str, name: str) -> list[str]:
        """Return an attribute of each element of a kind that has it."""
        return [found[name] or "" for kind, found in self.elements if kind == tag and name in found]

    def table(self, title: str) -> list[list[str]]:
        """Return the rows of the table whose caption begins with the title, without their heads."""
        return next(rows[2:] for rows in self.tables if rows[0][0] == title)


def _clip(name: str, title: str, collection: str, *queries: str) -> Clip:
    path = SOUNDS / name
    return Clip(
        path=path,
        identity=path.stem,
        split="val",
        metadata=Metadata(title=title),
        queries=tuple(Query(text, "", path.stem) for text in queries),
        collection=collection,
    )


CLIPS = [
    _clip("animals/owl.wav", "owl", "birds", "an owl", f"an owl, {NASTY}"),
    _clip("animals/crow.flac", NASTY, "birds", "a crow"),
    _clip("animals/duck-quack.wav", "duck", "pond", "a duck"),
    _clip("music/tabla-loop.m4a", "tabla", NASTY, "drums"),
    _clip("home/typing.mp3", "", "office"),
]
LOG = [
    {"epoch": 1, "loss": 4.0, "score": float("nan")},
    {"epoch": 2, "loss": 1.0, "score": 0.25},
    {"epoch": 3, "loss": 2.0, "score": 0.5},
]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Return two systems' assessment on five clips, with words that could be taken for markup."""
    encoders = {
        name: Encoder.random(TINY, seed) for seed, name in enumerate(("trained", "<start>"))
    }
    systems = {
        name: System(encoder, encode_clips(encoder, CLIPS)) for name, encoder in encoders.items()
    }
    log = tmp_path_factory.mktemp("run") / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in LOG))
    assessment = assess(systems, queries_of(CLIPS))
    return Story(f"Of {NASTY}", assessment, systems["trained"], log, {NASTY: NASTY})


def _write(folder: Path, story: Story) -> Page:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "STEPS", 8)  # where the map's points end matters to no test of a page
        write_report(folder / "report.html", story)
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def page(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Return the page of that story."""
    return _write(tmp_path_factory.mktemp("page"), story)


def test_the_page_loads_nothing(story: Story, tmp_path: Path) -> None:
    """Nothing on the page refers to anything outside it, and no script runs."""
    page = _write(tmp_path, story)
    for _, attributes in page.elements:
        for name in {"src", "srcset", "href", "xlink:href", "data", "poster", "action"} & {
            *attributes
        }:
            assert (attributes[name] or "").startswith(("#", "data:")), attributes
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert not {"script", "link", "img", "iframe", "object", "base"} & {t for t, _ in page.elements}
    plain = (tmp_path / "report.html").read_text()
    assert "url(" not in plain
    assert "@import" not in plain
    assert "http" not in re.sub(r"http(-equiv|://evil\.example)", "", plain)


def test_foreign_words_stay_words(page: Page) -> None:
    """Titles, queries, collections, facts and systems are shown as they are, never as markup."""
    words = " ".join(NASTY.split())
    assert page.text.count(words) >= 6
    assert "first right clip at rank" in page.articles[0]
    assert any("(<start>)" in article for article in page.articles)


def test_the_page_can_be_walked_by_keyboard(page: Page) -> None:
    """What scrolls sideways takes the focus and has a name, and each link leads somewhere."""
    for tag, attributes in page.elements:
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"], tag
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = page.attributes("a", "href")
    assert links
    assert {link.removeprefix("#") for link in links} <= ids


def test_the_tables_show_the_assessment(page: Page, story: Story) -> None:
    """Each number of each slice is the assessment's, with three decimals."""
    slices = story.assessment.as_dict()["slices"]
    assert len(slices) > 3
    for name, each in slices.items():
        rows = page.table(name)
        expected = []
        for ranked in each["systems"]["trained"]:
            for system, scores in each["systems"].items():
                values = scores[ranked]
                first, *rest = (f"{values[metric]:.3f}" for metric in each["random"])
                low, high = (f"{end:.3f}" for end in values["mAP@10 interval"])
                expected.append([ranked, system, first, f"{low} to {high}", "", *rest])
        first, *rest = (f"{value:.3f}" for value in each["random"].values())
        assert rows == [*expected, ["random", "", first, "", "", *rest]]


def test_the_differences_are_those_of_the_comparison(page: Page, story: Story) -> None:
    """Each slice has its paired difference, interval and verdict."""
    found = {row[0]: row[1:] for row in page.table("trained less <start>")}
    assert list(found) == list(story.assessment.slices)
    for name, each in story.assessment.slices.items():
        difference = each.compare("trained", "<start>")
        interval = f"{difference.low:+.3f} to {difference.high:+.3f}"
        told = [f"{difference.value:+.3f}", interval, "", "too few sounds to tell"]
        assert found[name] == [*told, str(difference.identities)]


def test_hits_and_misses_are_those_of_the_first_system(page: Page, story: Story) -> None:
    """Each query is shown with its best clips in order, and the right one with its rank."""
    system, titles = story.shown, [clip.metadata.title or clip.path.name for clip in CLIPS]
    vectors = system.encoder.fuse(
        system.gallery.embeddings[0].stack(system.gallery.embeddings),
        [clip.metadata.text for clip in CLIPS],
    ).vectors
    assert len(page.articles) == 5
    for query in story.assessment.queries:
        order = (-vectors @ system.encoder.encode_text([query.text])[0]).argsort().tolist()
        right = [CLIPS[row].identity == query.identity for row in order]
        (article,) = [each for each in page.articles if each.startswith(f"“{query.text}”")]
        shown = [*range(3)] if right.index(True) < 3 else [0, 1, 2, right.index(True)]
        expected = [
            f"{place + 1} {'✓ right' if right[place] else '✗ wrong'} {titles[order[place]]}"
            for place in shown
        ]
        assert f"at rank {right.index(True) + 1} (trained)" in article
        places = [article.index(each) for each in expected]
        assert places == sorted(places)
        assert article.count("✓") + article.count("✗") == len(expected)


def test_best_and_worst_are_of_different_sounds(story: Story, tmp_path: Path) -> None:
    """Half of the examples are the best ranked, half the worst, and no sound is asked twice."""
    queries = [Query(f"query {number}", "", f"sound {number // 2}") for number in range(40)]
    precision = torch.arange(1, 41).double().reciprocal()  # query 0 is at rank 1, 39 at 40
    page = _write(tmp_path, _asking(story, queries, trained=precision))
    found = [int(re.search(r"query (\d+)", article)[1]) for article in page.articles]  # type: ignore[index]
    assert found == [0, 2, 4, 6, 8, 10, 39, 37, 35, 33, 31, 29]
    assert "at rank 34 (trained)" in page.articles[9]


def _asking(story: Story, queries: list[Query], **systems: torch.Tensor) -> Story:
    """Return a story with made-up scores of queries for one sound, as if it were many."""
    identities = list(dict.fromkeys(query.identity for query in queries))
    clips = [replace(CLIPS[2], identity=identity) for identity in identities]
    gallery = Gallery(clips, [story.shown.gallery.embeddings[2]] * len(clips))
    scores = {
        name: {"hybrid": QueryScores(each, each, dict.fromkeys((1, 5, 10), each))}
        for name, each in systems.items()
    }
    made_up = Slice([q.identity for q in queries], scores, scores["trained"]["hybrid"])
    shown = System(story.shown.encoder, gallery)
    return Story("made up", Assessment(queries, len(clips), {"all": made_up}), shown)


@pytest.mark.parametrize(
    ("ours", "theirs", "sounds", "told"),
    [
        (1.0, 0.5, 10, "trained is better than start : mAP@10 is 1.000 against 0.500"),
        (0.5, 1.0, 10, "trained is worse than start : mAP@10 is 0.500 against 1.000"),
        (0.5, 0.5, 10, "trained is neither clearly better nor clearly worse than start"),
        (1.0, 0.5, 9, "There are too few sounds to tell trained from start"),
    ],
)
def test_the_verdict_is_what_can_be_concluded(  # noqa: PLR0913, PLR0917 - parametrised
    story: Story, tmp_path: Path, ours: float, theirs: float, sounds: int, told: str
) -> None:
    """The first sentence says whether it got better, only if that is clear."""
    queries = [Query("a duck", "", str(number)) for number in range(sounds)]
    values = {name: torch.full((sounds,), value).double() for name, value in
              (("trained", ours), ("start", theirs))}  # fmt: skip
    assert told in _write(tmp_path, _asking(story, queries, **values)).text


def test_one_system_alone_is_not_judged(story: Story, tmp_path: Path) -> None:
    """Without another system there are scores but no differences, without a log no training."""
    values = torch.full((10,), 0.5).double()
    queries = [Query("a duck", "", str(number)) for number in range(10)]
    page = _write(tmp_path, _asking(story, queries, trained=values))
    assert "There is nothing to compare it with" in page.text
    assert "Differences" not in page.text
    assert "Training" not in page.text
    assert len(page.tables) == 1


def test_sounds_are_embedded_as_short_wav(page: Page) -> None:
    """A player holds at most 5 s of the clip itself, as mono 16-bit PCM at 16 kHz."""
    sources = dict(zip(page.attributes("audio", "aria-label"), page.attributes("audio", "src"),
                       strict=True))  # fmt: skip
    assert "controls" in next(attributes for tag, attributes in page.elements if tag == "audio")
    for title, seconds in (("tabla", 5.0), ("duck", 0.26)):
        head, content = sources[title].split(",")
        assert head == "data:audio/wav;base64"
        with wave.open(io.BytesIO(base64.b64decode(content))) as sound:
            assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (
                1, 2, 16_000,
            )  # fmt: skip
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32767
        assert samples.size / 16_000 == pytest.approx(seconds, abs=0.01)
        clip = next(clip for clip in CLIPS if clip.metadata.title == title)
        with open_recording(clip.path, 60) as recording:
            original = next(recording.windows())[: 2 * samples.size]
        # Half the rate keeps what is below 8 kHz, nearly all of these.
        assert np.corrcoef(samples, original[::2][: samples.size])[0, 1] > 0.9


def test_a_sound_that_is_gone_has_no_player(story: Story, tmp_path: Path) -> None:
    """A file that was removed after hearing is said to be gone, and the page is written."""
    path = tmp_path / "gone \udcff.wav"  # as a name that is no UTF-8 is read from a folder
    shown, gone = story.shown, replace(CLIPS[0], path=path, metadata=Metadata())
    gallery = Gallery([gone, *CLIPS[1:]], shown.gallery.embeddings)
    page = _write(tmp_path, replace(story, shown=System(shown.encoder, gallery)))
    assert "gone ?.wav" in page.text
    assert "the sound is gone" in page.text
    assert page.attributes("audio", "src")


def test_each_number_of_the_log_has_a_chart(page: Page) -> None:
    """A chart goes from the first to the last epoch, higher is up, and what is no number is not."""
    points = [
        [tuple(map(float, point.split(","))) for point in each.split()]
        for each in page.attributes("polyline", "points")
    ]
    loss, score = points
    assert loss == [(0, 0), (120, 90), (240, 60)]
    assert score == [(0, 90), (240, 0)]
    assert "loss 4 → 2" in page.text
    assert "epoch 2: 1" in page.text


def test_the_map_shows_every_item_and_query(page: Page) -> None:
    """Each clip and each query is one circle with its name, in the colour of its collection."""
    titles = [clip.metadata.title or clip.path.name for clip in CLIPS]
    for clip, title in zip(CLIPS, titles, strict=True):
        assert f"{title} ({clip.identity})" in page.text
    circles = [attributes for tag, attributes in page.elements if tag == "circle"]
    classes = [str(each.get("class")) for each in circles if "class" in each]
    legend, places = classes[:4], classes[4:]
    assert legend == ["c0", "c1", "c2", "c3"]
    assert sorted(places) == sorted(
        ["c0", "c0", "c1", "c2", "c3", *["query c0"] * 3, "query c1", "query c2"]
    )
    assert "birds (2)" in page.text


def test_colours_are_labels_within_one_collection(story: Story) -> None:
    """Clips of one collection are coloured by their most frequent label, the rare as one."""
    labels = [("rare", "often")] * 3 + [("often",)] + [(f"label {n}",) for n in range(9)] + [()]
    clips = [
        replace(CLIPS[2], identity=str(number), metadata=Metadata(labels=each))
        for number, each in enumerate(labels)
    ]
    gallery = Gallery(clips, [story.shown.gallery.embeddings[2]] * len(clips))
    assessment = Assessment([Query("a duck", "", "13")], len(clips), {})
    drawn = report._map(
        Story("", assessment, System(story.shown.encoder, gallery)),
        torch.eye(16)[:1],
        torch.eye(16)[1 : 1 + len(clips)],
    )
    assert drawn.colours[0] == ("often", 4)
    assert [name for name, _ in drawn.colours][-1] == "other"
    assert sum(count for _, count in drawn.colours) == len(clips)
    assert {point.colour for point in drawn.items} == set(range(8))
    assert drawn.queries[0].colour == drawn.items[13].colour  # in that of the clip it means


def test_large_collections_are_thinned_on_the_map() -> None:
    """A map of many clips takes evenly spread ones, never more than it can place."""
    assert report._thinned(5, 10) == [0, 1, 2, 3, 4]
    assert report._thinned(25, 10) == [0, 3, 6, 9, 12, 15, 18, 21, 24]


def test_neighbours_stay_neighbours_in_the_plane() -> None:
    """Points of three distant clouds lie in three distant clouds, twice in the same place."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.eye(16)[:3].repeat_interleave(40, dim=0)
    vectors = centres + 0.1 * torch.randn(120, 16, generator=generator)
    places = place_in_plane(vectors)
    assert torch.equal(places, place_in_plane(vectors))
    nearest = torch.cdist(places, places).fill_diagonal_(torch.inf).topk(5, largest=False).indices
    clouds = torch.arange(120) // 40
    assert (clouds[nearest] == clouds[:, None]).all()


@pytest.mark.parametrize("vectors", [torch.eye(16)[:2], torch.ones(50, 16)])
def test_few_or_equal_points_have_a_place(vectors: torch.Tensor) -> None:
    """Two points, or many that are all alike, are placed without becoming infinite."""
    assert place_in_plane(vectors).isfinite().all()
