"""Qdrant's own engine behind the calls of a client: what outlives it, and what it refuses."""

import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from qdrant_client import models

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.engine import COLLECTION, Engine, NoSuchCollectionError

VECTORS = {"item": models.VectorParams(size=2, distance=models.Distance.COSINE)}


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """Return an engine with one empty collection, ``c``."""
    engine.create_collection("c", VECTORS, {"encoder": "late-aaa"})
    return engine


def _points(*names: str) -> list[models.PointStruct]:
    return [
        models.PointStruct(id=str(uuid4()), vector={"item": [1.0, n]}, payload={"name": name})
        for n, name in enumerate(names)
    ]


def _point_names(engine: Engine, where: models.Filter | None = None) -> set[str]:
    points, _ = engine.scroll("c", where, 100, None, with_payload=True, with_vectors=False)
    return {point["payload"]["name"] for point in points}


def test_everything_outlives_the_process(engine: Engine, tmp_path: Path) -> None:
    """Points, metadata and aliases of a closed engine are there when it is opened again."""
    engine.upsert("c", _points("rain"))
    made = models.CreateAlias(collection_name="c", alias_name="live")
    engine.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])
    engine.close()
    again = Engine(tmp_path / "index")
    assert again.count("live", None).count == 1
    assert again.get_collection("live")["config"]["metadata"] == {"encoder": "late-aaa"}
    again.close()


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    """Each point whose write had returned is there after SIGKILL."""
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from test_engine import VECTORS, Engine, _points
        engine = Engine(Path(sys.argv[1]))
        engine.create_collection("c", VECTORS)
        for number in range(50):
            engine.upsert("c", _points(str(number)))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    folder = tmp_path / "index"
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", script, str(folder), here], check=False)
    engine = Engine(folder)
    assert _point_names(engine) == set(map(str, range(50)))
    engine.close()


def test_a_folder_has_one_owner(engine: Engine, tmp_path: Path) -> None:
    """Opening a folder that another engine has open is one clear error."""
    del engine
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        Engine(tmp_path / "index")


def test_what_a_crash_left_of_a_collection_is_made_anew(engine: Engine, tmp_path: Path) -> None:
    """A collection whose making or deleting was cut off is none, and its name can be used."""
    engine.close()
    (tmp_path / "index" / "c" / COLLECTION).unlink()
    again = Engine(tmp_path / "index")
    assert not again.collection_exists("c")
    assert again.create_collection("c", VECTORS)
    again.close()


def test_a_deleted_collection_takes_its_alias_along(engine: Engine) -> None:
    """Neither its name nor its alias is found any more, and deleting it again changes nothing."""
    made = models.CreateAlias(collection_name="c", alias_name="live")
    engine.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])
    assert engine.delete_collection("c")
    assert not engine.delete_collection("c")
    assert not engine.get_aliases().aliases
    for name in ("c", "live"):
        with pytest.raises(ValueError, match="not found"):
            engine.count(name, None)


def test_a_refused_action_on_aliases_keeps_those_before_it(engine: Engine) -> None:
    """As on a server: the first actions are done, the refused one and all after it are not."""
    missing = models.CreateAlias(collection_name="nothing", alias_name="b")
    made = models.CreateAlias(collection_name="c", alias_name="a")
    with pytest.raises(NoSuchCollectionError):
        engine.update_collection_aliases(
            [models.CreateAliasOperation(create_alias=each) for each in (made, missing, made)]
        )
    assert [each.alias_name for each in engine.get_aliases().aliases] == ["a"]


def test_deleting_a_collection_that_is_asked_is_told_as_such(engine: Engine) -> None:
    """Threads that ask while their collection goes hear that it is not found, and nothing else."""
    engine.upsert("c", _points(*map(str, range(200))))
    errors: list[Exception] = []

    def ask() -> None:
        try:
            while True:
                engine.scroll("c", None, 200, None, with_payload=True, with_vectors=True)
        except Exception as error:  # noqa: BLE001 - what it is, is judged below
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.delete_collection("c")
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [NoSuchCollectionError] * 4


def _about(**condition: object) -> models.FieldCondition:
    return models.FieldCondition(key="name", **condition)


RAIN, WIND = (_about(match=models.MatchValue(value=name)) for name in ("rain", "wind"))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (models.Filter(must=[RAIN]), {"rain"}),
        (models.Filter(must=RAIN), {"rain"}),
        (models.Filter(must_not=[RAIN]), {"wind", "windmill"}),
        (models.Filter(should=[RAIN, WIND]), {"rain", "wind"}),
        (models.Filter(must=[models.Filter(should=[RAIN, WIND])], must_not=[WIND]), {"rain"}),
        (models.Filter(must=[_about(match=models.MatchAny(any=["wind", "x"]))]), {"wind"}),
        (
            models.Filter(must=[_about(match=models.MatchExcept(**{"except": ["wind"]}))]),
            {"rain", "windmill"},
        ),
        (
            models.Filter(must=[_about(match=models.MatchPrefix(prefix="wind"))]),
            {"wind", "windmill"},
        ),
    ],
)
def test_filters_mean_what_they_mean_to_a_server(
    engine: Engine, where: models.Filter, expected: set[str]
) -> None:
    """Each kind of condition, and each way to join them, lets through what it should."""
    engine.upsert("c", _points("rain", "wind", "windmill"))
    assert _point_names(engine, where) == expected


@pytest.mark.parametrize(
    "condition",
    [
        _about(match=models.MatchValue(value=True)),
        _about(match=models.MatchText(text="rain")),
        models.IsEmptyCondition(is_empty=models.PayloadField(key="name")),
    ],
)
def test_a_condition_that_is_not_known_is_refused(engine: Engine, condition: object) -> None:
    """It is an error, never an answer that silently lacks something."""
    with pytest.raises(ValueError, match="does not know this condition"):
        engine.count("c", models.Filter(must=[condition]))  # type: ignore[list-item]


@pytest.mark.parametrize("copies", [7, 60])
def test_pages_of_equals_show_each_once(engine: Engine, copies: int) -> None:
    """However many score the same, pages side by side have each point once, and are one order."""
    same = [
        models.PointStruct(id=str(uuid4()), vector={"item": [1.0, 0.5]}, payload={"name": "copy"})
        for _ in range(copies)
    ]
    engine.upsert("c", [*_points("a", "b", "c"), *same])

    def ask(limit: int, offset: int) -> list[str]:
        asked = models.QueryRequest(query=[1.0, 0.5], using="item", limit=limit, offset=offset)
        (found,) = engine.query_batch_points("c", [asked])
        assert all(point["payload"] is None for point in found["points"])
        return [point["id"] for point in found["points"]]

    pages = [id_ for offset in range(0, copies + 3, 5) for id_ in ask(5, offset)]
    assert len(set(pages)) == len(pages) == copies + 3
    assert ask(copies + 3, 0) == pages


def test_vectors_of_another_length_are_refused(engine: Engine) -> None:
    """A point that does not fit the collection is an error of whoever wrote it."""
    with pytest.raises(ValueError, match="dim"):
        engine.upsert("c", [models.PointStruct(id=str(uuid4()), vector={"item": [1.0]})])
