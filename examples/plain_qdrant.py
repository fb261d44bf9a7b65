"""Asks by plain Qdrant, without audiofuse: ``pip install qdrant-client fastembed``.

    python plain_qdrant.py "a dog barking"

QDRANT_URL and QDRANT_API_KEY say where the index is, AUDIOFUSE_SEARCH_URL and AUDIOFUSE_SEARCH_KEY
where the query service is. The functions are all that a program of your own needs: copy them.
"""

import io
import json
import os
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import httpx
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from qdrant_client import QdrantClient, models

SEARCH_URL = os.environ.get("AUDIOFUSE_SEARCH_URL", "http://127.0.0.1:7700")
SEARCH_KEY = os.environ.get("AUDIOFUSE_SEARCH_KEY", "")


def live(client: QdrantClient, alias: str = "audiofuse") -> tuple[str, str]:
    """Return the collection that is live now, and the version of the encoder that made it."""
    aliases = client.get_aliases().aliases
    collection = next(a.collection_name for a in aliases if a.alias_name == alias)
    return collection, (client.get_collection(collection).config.metadata or {})["encoder"]


@cache
def tower(version: str) -> str:
    """Fetch a version's text tower from the query service, once, and have fastembed know it."""
    url = f"{SEARCH_URL}/v1/encoders/{version}/query.zip"
    headers = {"Authorization": f"Bearer {SEARCH_KEY}"} if SEARCH_KEY else {}
    answer = httpx.get(url, headers=headers, timeout=60)
    folder = tempfile.mkdtemp(prefix="tower-")
    zipfile.ZipFile(io.BytesIO(answer.raise_for_status().content)).extractall(folder)
    TextEmbedding.add_custom_model(
        model=version, pooling=PoolingType.DISABLED, normalization=True,
        dim=json.loads(Path(folder, "config.json").read_text())["dim"],
        sources=ModelSource(url="file://unused"), model_file="onnx/model.onnx",
    )  # fmt: skip
    return folder


def document(text: str, version: str) -> models.Document:
    """Return a sentence as the encoder of this version reads it."""
    options = {"specific_model_path": tower(version), "cuda": False, "lazy_load": True}
    return models.Document(text=text, model=version, options=options)


def ask(client: QdrantClient, text: str, limit: int = 10) -> list[models.ScoredPoint]:
    """Return the items nearest to a sentence. The alias is resolved anew for each question."""
    collection, version = live(client)
    query = document(text, version)
    return client.query_points(collection, query=query, using="item", limit=limit).points


def moments(client: QdrantClient, text: str, limit: int = 10) -> list[models.PointGroup]:
    """Return long recordings by their nearest moments, at most three of each.

    A moment belongs to its recording while its ``state`` is the item's ``moments_state``.
    """
    collection, version = live(client, "audiofuse-moments")
    query = document(text, version)
    return client.query_points_groups(
        collection, "item", query=query, using="item", limit=limit, group_size=3
    ).groups


if __name__ == "__main__":
    url = os.environ.get("QDRANT_URL", "http://127.0.0.1:6333")
    client = QdrantClient(url, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
    for hit in ask(client, sys.argv[1]):
        print(f"{hit.score:.3f}  {(hit.payload or {})['key']}")
    for recording in moments(client, sys.argv[1]):
        for hit in recording.hits:
            at = hit.payload or {}
            print(f"{hit.score:.3f}  {at['key']}, {at['start_s']:.0f} to {at['end_s']:.0f} s")
