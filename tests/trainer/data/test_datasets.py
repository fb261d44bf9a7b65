"""Data sets: each format as it is published, splits that hold, and no sound in two of them."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Reason, Unavailable
from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.items import Metadata, ObjectInfo
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore, Store, open_store, s3_client
from audiofuse.trainer.data import datasets
from audiofuse.trainer.data.datasets import (
    assign_splits,
    check_leakage,
    read_audiocaps,
    read_bucket,
    read_clotho,
    read_dataset,
)

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"

CLOTHO_HEAD = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
CLOTHO_METADATA_HEAD = (
    "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
)
AUDIOCAPS_HEAD = "audiocap_id,youtube_id,start_time,caption\n"
SEGMENTS = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
    'r1nicOVtvkQ, 130.000, 140.000, "/m/02jz0l,/m/09x0r"\n'
    'not_in_it_x, 30.000, 40.000, "/m/unheard_of"\n'
)
CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/02jz0l,"Water tap, faucet"\n'


def _put(sound: Path, *targets: Path) -> None:
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sound, target)


def _clip(name: str, split: str = "", identity: str = "") -> Clip:
    return Clip(Path(name), identity or name, split, Metadata())


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    """Return a folder like ClothoV2 as it is published, with two clips, one of them described."""
    folder = tmp_path / "clotho"
    _put(OWL, folder / "development/ an owl.wav", folder / "evaluation/owl 2.wav")
    (folder / "clotho_captions_development.csv").write_text(
        CLOTHO_HEAD + ' an owl.wav,An owl hoots.,"A bird, at night.", ,Hooting.,Owl.\n'
    )
    (folder / "clotho_metadata_development.csv").write_bytes(
        (
            CLOTHO_METADATA_HEAD
            + ' an owl.wav,nuit;forêt; owl,4711,https://x,"[1, 2]",someone,CC0\n'
        ).encode("latin-1")
    )
    (folder / "clotho_captions_evaluation.csv").write_text(CLOTHO_HEAD + "owl 2.wav,a,b,c,d,e\n")
    return folder


@pytest.fixture
def audiocaps(tmp_path: Path) -> Path:
    """Return a folder with tables of AudioCaps and AudioSet, without any sound."""
    folder = tmp_path / "audiocaps"
    folder.mkdir()
    (folder / "train.csv").write_text(
        AUDIOCAPS_HEAD + '91139,r1nicOVtvkQ,130,"A woman talks, water pours"\n'
    )
    (folder / "audiocaps_val.csv").write_text(
        AUDIOCAPS_HEAD
        + "97151,vfY_TJq7n_U,130,Ducks quack\n"
        + "97152,-gone-gone-,10,Nothing is left\n"
        + "97153,vfY_TJq7n_U,130,Ducks and water\n"
    )
    return folder


def test_clotho_is_read_as_published(clotho: Path) -> None:
    """Captions, Latin-1 keywords and odd file names of ClothoV2 become a clip."""
    assert read_clotho(clotho)[0] == Clip(
        path=clotho / "development/ an owl.wav",
        identity="freesound-4711",
        split="train",
        metadata=Metadata(keywords=("nuit", "forêt", "owl")),
        queries=tuple(
            Query(caption, "caption", "freesound-4711")
            for caption in ("An owl hoots.", "A bird, at night.", "Hooting.", "Owl.")
        ),
        captions=("An owl hoots.", "A bird, at night.", "Hooting.", "Owl."),
        licence="CC0",
        collection="clotho",
    )


def test_clotho_needs_neither_metadata_nor_all_splits(clotho: Path) -> None:
    """The splits that are there are read; a clip that nothing describes is its file name."""
    second = read_clotho(clotho)[1]
    assert (second.identity, second.split, second.metadata) == ("owl 2.wav", "test", Metadata())


def test_clotho_clips_without_number_are_their_file_names(clotho: Path) -> None:
    """Where the table says "Not found" the clips are not one and the same sound."""
    table = clotho / "clotho_metadata_development.csv"
    table.write_bytes(table.read_bytes().replace(b"4711", b"Not found"))
    assert read_clotho(clotho)[0].identity == " an owl.wav"


def test_missing_sounds_are_left_out_and_counted(
    clotho: Path, audiocaps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Clips without a sound file are no clips, and the log tells how many of each table."""
    (clotho / "evaluation/owl 2.wav").unlink()
    _put(OWL, audiocaps / "val/vfY_TJq7n_U.wav")
    with caplog.at_level(logging.WARNING):
        assert len(read_clotho(clotho)) == 1
        assert len(read_audiocaps(audiocaps)) == 1
    told = [record.getMessage().rpartition("/")[2] for record in caplog.records]
    assert told == [
        "clotho_captions_evaluation.csv: 1 of 1 clips have no sound file",
        "train.csv: 1 of 1 clips have no sound file",
        "audiocaps_val.csv: 1 of 2 clips have no sound file",
    ]


def test_audiocaps_rows_of_one_clip_are_its_captions(audiocaps: Path) -> None:
    """Several rows of one YouTube clip make one clip with as many captions, in their order."""
    _put(OWL, audiocaps / "val/vfY_TJq7n_U.wav")
    (clip,) = read_audiocaps(audiocaps)
    assert (clip.split, clip.identity) == ("val", "youtube-vfY_TJq7n_U")
    assert clip.captions == ("Ducks quack", "Ducks and water")
    assert [query.text for query in clip.queries] == list(clip.captions)
    assert (clip.collection, clip.metadata) == ("audiocaps", Metadata())


@pytest.mark.parametrize(
    "name",
    [
        "val/vfY_TJq7n_U.wav",
        "audio/vfY_TJq7n_U.flac",
        "audio/YvfY_TJq7n_U.mp3",
        "val/97151.wav",
        "val/97153.wav",
        "val/vfY_TJq7n_U_130.wav",
        "val/vfY_TJq7n_U_130000_140000.flac",
    ],
)
def test_audiocaps_sounds_go_by_several_names(audiocaps: Path, name: str) -> None:
    """A clip's sound is found under each name that is in use, and is no other clip's."""
    _put(OWL, audiocaps / name, audiocaps / "val/vfY_TJq7n_U_131.wav", audiocaps / "val/other.wav")
    assert [clip.path for clip in read_audiocaps(audiocaps)] == [audiocaps / name]


def test_audioset_labels_are_the_metadata(audiocaps: Path) -> None:
    """Where AudioSet's tables are in the folder, its class names are the clips' labels."""
    _put(OWL, audiocaps / "train/r1nicOVtvkQ.wav", audiocaps / "val/vfY_TJq7n_U.wav")
    (audiocaps / "unbalanced_train_segments.csv").write_text(SEGMENTS)
    (audiocaps / "audioset_class_labels_indices.csv").write_text(CLASSES)
    labels = [clip.metadata.labels for clip in read_audiocaps(audiocaps)]
    assert labels == [("Water tap, faucet", "Speech"), ()]


@pytest.mark.parametrize(
    ("classes", "segments", "named"),
    [
        ("", SEGMENTS, "class_labels_indices"),
        ("index,display_name\n", SEGMENTS, "indices.csv, line 1: .*mid"),
        (CLASSES, SEGMENTS.replace("02jz0l", "nothing"), "segments.csv, line 4: .*/m/nothing"),
        (CLASSES, SEGMENTS.replace(" 140.000,", ""), "segments.csv, line 4: 3 fields"),
    ],
)
def test_wrong_label_tables_are_named(
    audiocaps: Path, classes: str, segments: str, named: str
) -> None:
    """Labels that cannot be named are an error that says where."""
    _put(OWL, audiocaps / "train/r1nicOVtvkQ.wav")
    (audiocaps / "train_segments.csv").write_text(segments)
    if classes:
        (audiocaps / "class_labels_indices.csv").write_text(classes)
    with pytest.raises(ConfigurationError, match=named):
        read_audiocaps(audiocaps)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"id,caption\n", "train.csv, line 1: .*audiocap_id, youtube_id, start_time"),
        (b"", "train.csv is empty"),
        (AUDIOCAPS_HEAD.encode() + b"1,abc,3\n", "train.csv, line 2: 3 fields instead of 4"),
        (AUDIOCAPS_HEAD.encode() + b"1,abc,3,x\n\n2,b,3,x,y\n", "line 4: 5 fields instead of 4"),
        (AUDIOCAPS_HEAD.encode() + b"1,abc,soon,x\n", "line 2: .*start_time.*soon"),
        (AUDIOCAPS_HEAD.encode() + b"1,abc,3,\xff\n", "line 2: not utf-8"),
        (AUDIOCAPS_HEAD.encode() + b'1,abc,3,"x\n', "train.csv, line 2: "),
    ],
)
def test_wrong_tables_are_named(audiocaps: Path, content: bytes, named: str) -> None:
    """A table that cannot be read is an error that says which line is wrong."""
    (audiocaps / "train.csv").write_bytes(content)
    with pytest.raises(ConfigurationError, match=named):
        read_audiocaps(audiocaps)


def test_a_byte_order_mark_is_no_part_of_a_column(audiocaps: Path) -> None:
    """Tables that a spreadsheet program wrote are read as well."""
    _put(OWL, audiocaps / "train/r1nicOVtvkQ.wav")
    table = audiocaps / "train.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(read_audiocaps(audiocaps)) == 1


def test_the_published_tables_are_read(shared: Path, tmp_path: Path) -> None:
    """The real tables of ClothoV2, AudioCaps and AudioSet parse to the end."""
    for table in (shared / "data" / "text").iterdir():
        (tmp_path / table.name).symlink_to(table)
    _put(OWL, tmp_path / "development/violin1.wav", tmp_path / "train/r1nicOVtvkQ.wav")
    (tmp_path / "balanced_train_segments.csv").write_text(SEGMENTS)
    (violin,) = read_clotho(tmp_path)
    assert violin.identity == "freesound-211388"
    assert violin.metadata.keywords == ("background", "background-sound", "atmos", "anxious")
    assert len(violin.captions) == 5
    (water,) = read_audiocaps(tmp_path)
    assert water.captions == ("A woman talks nearby as water pours",)
    assert water.metadata.labels == ("Water tap, faucet", "Speech")


SIDECARS: dict[str, dict[str, Any]] = {
    "night/owl.wav.json": {
        "title": "Owl",
        "captions": ["an owl hoots", "a bird at night"],
        "identity": "the owl",
        "split": "val",
        "queries": [{"text": "hooting"}],
        "recorder": "mine",
    },
    "crow.json": {"keywords": "crow; caw", "captions": "a crow calls"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a bucket folder: two sounds with sidecars, one without, and what is no sound."""
    root = tmp_path / "birds"
    _put(OWL, root / "night/owl.wav", root / "bare.wav")
    _put(CROW, root / "crow.flac")
    for key, fields in SIDECARS.items():
        (root / key).write_text(json.dumps(fields))
    (root / "notes.txt").write_text("no sound")
    return root


def test_a_bucket_is_read_with_its_sidecars(folder: Path, tmp_path: Path) -> None:
    """Words, captions, identity, split and queries come from the sidecar; defaults fill in."""
    dataset = read_bucket(FolderStore(folder), tmp_path / "downloads")
    bare, crow, owl = dataset.clips
    assert owl == Clip(
        path=folder / "night/owl.wav",
        identity="the owl",
        split="val",
        metadata=Metadata(title="Owl"),
        queries=(Query("hooting", "", "the owl"),),
        captions=("an owl hoots", "a bird at night"),
        collection="birds",
    )
    assert (crow.identity, crow.split) == ("birds/crow.flac", "")
    assert crow.metadata == Metadata(keywords=("crow", "caw"))
    assert crow.queries == (Query("a crow calls", "caption", "birds/crow.flac"),)
    assert (bare.metadata, bare.captions, bare.queries) == (Metadata(), (), ())
    assert not dataset.rejected
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize(
    "sidecar", [b"not json", b'{"captions": 3}', b'{"title": "' + b"x" * 300_000 + b'"}']
)
def test_a_broken_sidecar_costs_its_clip_alone(
    folder: Path, tmp_path: Path, sidecar: bytes
) -> None:
    """A clip whose split cannot be known is left out and listed; the others are read."""
    (folder / "night/owl.wav.json").write_bytes(sidecar)
    dataset = read_bucket(FolderStore(folder), tmp_path / "downloads")
    assert [clip.path.name for clip in dataset.clips] == ["bare.wav", "crow.flac"]
    assert [(key, error.reason) for key, error in dataset.rejected] == [
        ("night/owl.wav.json", Reason.BAD_SIDECAR)
    ]


@pytest.fixture
def s3(aws_settings: Settings, folder: Path) -> Settings:
    """Return settings of an S3 bucket that holds what the folder holds."""
    client = s3_client(aws_settings)
    bucket = aws_settings.bucket.removeprefix("s3://")
    for path in folder.rglob("*.*"):
        key = path.relative_to(folder).as_posix()
        client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    return aws_settings


def test_s3_is_fetched_once(s3: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are fetched whole on the first run, and only replaced ones on the next."""
    downloads = tmp_path / "downloads"
    store = open_store(s3)
    first = read_bucket(store, downloads)
    assert [clip.path.read_bytes() for clip in first.clips] == [
        path.read_bytes() for path in (OWL, CROW, OWL)
    ]
    assert [clip.path.suffix for clip in first.clips] == [".wav", ".flac", ".wav"]
    assert first.clips[0].identity == f"{store.bucket}/bare.wav"
    client = s3_client(s3)
    client.put_object(Bucket=store.bucket, Key="bare.wav", Body=b"other")
    opened = []
    really_open = store.open

    def listening(info: ObjectInfo) -> Any:
        opened.append(info.key)
        return really_open(info)

    monkeypatch.setattr(store, "open", listening)
    second = read_bucket(store, downloads)
    assert sorted(key for key in opened if not key.endswith(".json")) == ["bare.wav"]
    assert second.clips[0].path.read_bytes() == b"other"
    assert [clip.path for clip in second.clips[1:]] == [clip.path for clip in first.clips[1:]]
    assert len(list(downloads.iterdir())) == 4


def test_s3_user_metadata_fills_gaps(s3: Settings, tmp_path: Path) -> None:
    """What a worker would index is what is trained on: user metadata counts as it does there."""
    client = s3_client(s3)
    client.put_object(
        Bucket=s3.bucket.removeprefix("s3://"),
        Key="crow.flac",
        Body=CROW.read_bytes(),
        Metadata={"title": "Crow", "keywords": "beaten by the sidecar"},
    )
    crow = read_bucket(open_store(s3), tmp_path / "downloads").clips[1]
    assert crow.metadata == Metadata(title="Crow", keywords=("crow", "caw"))


class _Restless(FolderStore):
    """A folder in which a sidecar is replaced whenever it is read, so many times."""

    changes = 0

    def read(self, info: ObjectInfo) -> bytes:
        """Refuse what changed meanwhile."""
        if info.key == "crow.json" and self.changes > 0:
            self.changes -= 1
            raise ObjectChanged(info.key)
        return super().read(info)


def test_what_changes_meanwhile_is_looked_at_again(folder: Path, tmp_path: Path) -> None:
    """An object that is replaced while it is read is read as it is then, unless it never rests."""
    store = _Restless(folder)
    store.changes = 2
    assert len(read_bucket(store, tmp_path).clips) == 3
    store.changes = 1000
    with pytest.raises(Unavailable, match=r"crow\.flac"):
        read_bucket(store, tmp_path)


def test_what_is_gone_meanwhile_is_no_clip(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound that was listed and then deleted is left out without a word."""
    store: Store = FolderStore(folder)
    listed = list(store.list())
    (folder / "bare.wav").unlink()
    monkeypatch.setattr(store, "list", lambda: iter(listed))
    dataset = read_bucket(store, tmp_path)
    assert [clip.path.name for clip in dataset.clips] == ["crow.flac", "owl.wav"]
    assert not dataset.rejected


def test_downloads_that_cannot_be_kept_are_an_error(s3: Settings, tmp_path: Path) -> None:
    """A download folder that cannot be written is named, instead of a traceback."""
    (tmp_path / "downloads").touch()
    with pytest.raises(ConfigurationError, match="downloads"):
        read_bucket(open_store(s3), tmp_path / "downloads")


def test_progress_sees_every_sound(folder: Path, tmp_path: Path) -> None:
    """A progress display is given the sounds of the bucket, with their number."""
    seen = []

    def count(work: Any) -> Any:
        seen.append(len(work))
        return work

    read_bucket(FolderStore(folder), tmp_path, count)
    assert seen == [3]


def test_a_source_is_read_by_what_it_is(
    clotho: Path, audiocaps: Path, s3: Settings, folder: Path, tmp_path: Path
) -> None:
    """Manifest, ClothoV2, AudioCaps, folder and S3 bucket are told apart by the path alone."""
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text('{"audio": "owl.wav", "set": "mine"}\n')
    _put(OWL, audiocaps / "val/vfY_TJq7n_U.wav")
    sources = [str(manifest), str(clotho), str(audiocaps), str(folder), s3.bucket]
    read = [read_dataset(source, s3, tmp_path / "downloads").clips for source in sources]
    assert [(clips[0].collection, len(clips)) for clips in read] == [
        ("mine", 1),
        ("clotho", 2),
        ("audiocaps", 1),
        ("birds", 3),
        (s3.bucket.removeprefix("s3://"), 3),
    ]


def test_a_source_without_clips_is_refused(audiocaps: Path, tmp_path: Path) -> None:
    """Where nothing can be trained on, that is said at once."""
    for source in (audiocaps, tmp_path / "nowhere"):
        with pytest.raises(ConfigurationError, match=source.name):
            read_dataset(str(source), Settings(), tmp_path / "downloads")


def test_splits_are_about_as_large_as_asked() -> None:
    """A share of the identities is val, another one by another seed; given splits stay."""
    clips = [_clip(f"{number}.wav") for number in range(2000)] + [_clip("held.wav", "test")]
    splits = [clip.split for clip in assign_splits(clips, 0.2, seed=0)]
    assert 350 < splits.count("val") < 450
    assert splits.count("train") == 2000 - splits.count("val")
    assert splits[-1] == "test"
    assert splits != [clip.split for clip in assign_splits(clips, 0.2, seed=1)]


@pytest.mark.parametrize(("share", "split"), [(0.0, "train"), (1.0, "val")])
def test_a_share_may_be_none_or_all(share: float, split: str) -> None:
    """Without a validation share all is for training, and the other way round."""
    clips = assign_splits([_clip(f"{number}.wav") for number in range(100)], share, seed=0)
    assert {clip.split for clip in clips} == {split}


def test_more_data_moves_nobody() -> None:
    """Clips that come later, in whatever order, leave all others where they were."""
    clips = [_clip(f"{number}.wav") for number in range(200)]
    before = assign_splits(clips[:100], 0.3, seed=0)
    after = assign_splits(clips[::-1], 0.3, seed=0)[::-1]
    assert after[:100] == before


def test_an_identity_stays_together() -> None:
    """Clips of one identity get one split, and that of a clip which has one already."""
    alike = [_clip(f"{number}.wav", identity="owl") for number in range(20)]
    assert len({clip.split for clip in assign_splits(alike, 0.5, seed=0)}) == 1
    alike[7] = replace(alike[7], split="distractor")
    assert {clip.split for clip in assign_splits(alike, 0.5, seed=0)} == {"distractor"}


@pytest.mark.parametrize(
    ("clips", "named"),
    [
        ([_clip("a.wav", "train", "owl"), _clip("b.wav", "test", "owl")], "identity"),
        ([_clip("x/../a.wav", "train", "1"), _clip("a.wav", "val", "2")], "file"),
        ([_clip("same-1.wav", "train"), _clip("same-2.wav", "distractor")], "content"),
    ],
)
def test_a_sound_in_two_splits_is_refused(clips: list[Clip], named: str) -> None:
    """One identity, one file or one content in two splits is an error that names both clips."""
    contents = {Path("same-1.wav"): "c", Path("same-2.wav"): "c", Path("a.wav"): "a"}
    with pytest.raises(ConfigurationError, match=f"^1 sounds .* have one {named}$") as caught:
        check_leakage(clips, contents)
    for clip in clips:
        assert f"{clip.path} ({clip.split})" in str(caught.value)


def test_many_leaks_are_counted_and_a_few_named() -> None:
    """The first few are enough to see what is wrong; the number tells how much."""
    clips = [_clip(f"{n}-{split}", split, str(n)) for n in range(40) for split in ("train", "val")]
    with pytest.raises(ConfigurationError, match="40 sounds") as caught:
        check_leakage(clips, {})
    assert str(caught.value).count("have one identity") == 5


def test_nothing_leaks_within_a_split() -> None:
    """The same sound several times in one split, and clips without known content, are fine."""
    clips = [_clip("a.wav", "train", "owl"), _clip("b.wav", "train", "owl"), _clip("c.wav", "val")]
    check_leakage(clips, {Path("a.wav"): "same", Path("b.wav"): "same"})


def test_manifests_of_the_project_do_not_leak(shared: Path) -> None:
    """The reference manifests hold no identity in two splits, once every clip has one."""
    sources = [str(shared / "data" / f"{name}.jsonl") for name in ("human", "esc", "extra")]
    clips = [
        clip
        for source in sources
        for clip in read_dataset(source, Settings(), Path("downloads")).clips
    ]
    assert len(clips) == 1319
    check_leakage(assign_splits(clips, 0.1, seed=0), {})


def test_a_table_that_is_a_folder_cannot_be_read(audiocaps: Path) -> None:
    """A table that cannot be opened is named."""
    with pytest.raises(ConfigurationError, match="audiocaps"):
        list(datasets._rows(audiocaps, ("caption",)))
