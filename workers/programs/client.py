"""A typed client of a query service, with an event loop or without.

    with Client() as client:                     # that which `audiofuse up` runs, or the settings'
        for hit in client.search("a dog barking", label="Dog", limit=5):
            print(hit.score, hit.key)

Both raise ``QueryError`` for what cannot be asked (``NotFound`` where there is no such item),
``ConfigurationError`` for a key that is refused, and ``Unavailable`` when nobody answers.
"""

from typing import Any, NoReturn, Self

import httpx

from audiofuse.core.errors import ConfigurationError, NotFound, QueryError, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.workers.programs.hits import Listed, Sound, Sounds
from audiofuse.workers.service.client import service_urls

TIMEOUT_S = 30.0  # for an answer to begin and to go on
NOT_ALLOWED = {401, 403}
NOT_FOUND = 404
AT_FAULT = {400, 408, 413, 422}


class _Speaks:
    """What both clients have in common: what is asked, and what answers mean."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        """Ask the service at ``url`` with an API ``key``; unset: what the settings say."""
        settings = Settings()
        secret = settings.search_key.get_secret_value() if settings.search_key else None
        self.url = (url or service_urls(settings.search_url)[0]).rstrip("/")
        key = key or (None if url else secret)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def _search(self, text: str, options: dict[str, Any]) -> httpx.Request:
        return self._post("/v1/search", {"q": text, **options})

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Request:
        return httpx.Request("POST", self.url + path, json=body, headers=self._headers)

    def _get(self, path: str, options: dict[str, Any]) -> httpx.Request:
        given = {name: value for name, value in options.items() if value not in (None, "")}
        return httpx.Request("GET", self.url + path, params=given, headers=self._headers)

    def _hear(self, sound: Sound) -> httpx.Request:
        if sound.audio_url is None:
            raise ConfigurationError("this key gets no links to sounds: it lacks the scope audio")
        return httpx.Request("GET", sound.audio_url)  # its signature is its key

    def _sounds(self, answer: httpx.Response, name: str) -> Sounds:
        told = _told(answer)
        sounds = Sounds(Sound.told(each, self.url + "/") for each in told[name])
        sounds.nothing = told.get("nothing")
        sounds.partial = told.get("partial", [])
        return sounds

    def _item(self, answer: httpx.Response) -> Sound:
        return Sound.told(_told(answer), self.url + "/")

    def _listed(self, answer: httpx.Response) -> Listed:
        told = _told(answer)
        return Listed(self._sounds(answer, "found"), told["items"], told["next"])

    def _away(self, error: httpx.TransportError) -> NoReturn:
        raise Unavailable(f"no query service answers at {self.url} ({error})") from error


class Client(_Speaks):
    """Asks a query service; each call waits for its answer. Many threads may use it at once."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        """See above."""
        super().__init__(url, key)
        self._http = httpx.Client(timeout=TIMEOUT_S)

    def __enter__(self) -> Self:
        """Use its connections."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self._http.close()

    def search(self, text: str = "", **options: Any) -> Sounds:
        """Return the sounds nearest to a sentence; ``options`` are those of POST /v1/search."""
        return self._sounds(self._send(self._search(text, options)), "hits")

    def similar(self, id_: str, **options: Any) -> Sounds:
        """Return what is like an item, without the item."""
        return self._sounds(self._send(self._get(f"/v1/similar/{id_}", options)), "hits")

    def item(self, id_: str) -> Sound:
        """Return one item, with all that its sidecar says."""
        return self._item(self._send(self._get(f"/v1/items/{id_}", {})))

    def items(self, **options: Any) -> Listed:
        """Return a page of items; ``options`` are those of GET /v1/items."""
        return self._listed(self._send(self._get("/v1/items", options)))

    def labels(self, id_: str) -> dict[str, float]:
        """Return what an item may be called by its sound, and how near that is; nearest first."""
        return _labels(self._send(self._get(f"/v1/items/{id_}/labels", {})))

    def facets(self, **options: Any) -> dict[str, Any]:
        """Return what items have in common; ``options`` are those of GET /v1/facets."""
        return _told(self._send(self._get("/v1/facets", options)))

    def read(self, sound: Sound) -> bytes:
        """Return the bytes of a sound, as the bucket has them."""
        return _checked(self._send(self._hear(sound))).content

    def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return self._http.send(request)
        except httpx.TransportError as error:
            self._away(error)


class AsyncClient(_Speaks):
    """Asks a query service from an event loop; the same as ``Client``, awaited."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        """See above."""
        super().__init__(url, key)
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S)

    async def __aenter__(self) -> Self:
        """Use its connections."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them."""
        await self._http.aclose()

    async def search(self, text: str = "", **options: Any) -> Sounds:
        """See ``Client``."""
        return self._sounds(await self._send(self._search(text, options)), "hits")

    async def similar(self, id_: str, **options: Any) -> Sounds:
        """See ``Client``."""
        return self._sounds(await self._send(self._get(f"/v1/similar/{id_}", options)), "hits")

    async def item(self, id_: str) -> Sound:
        """See ``Client``."""
        return self._item(await self._send(self._get(f"/v1/items/{id_}", {})))

    async def items(self, **options: Any) -> Listed:
        """See ``Client``."""
        return self._listed(await self._send(self._get("/v1/items", options)))

    async def labels(self, id_: str) -> dict[str, float]:
        """See ``Client``."""
        return _labels(await self._send(self._get(f"/v1/items/{id_}/labels", {})))

    async def facets(self, **options: Any) -> dict[str, Any]:
        """See ``Client``."""
        return _told(await self._send(self._get("/v1/facets", options)))

    async def read(self, sound: Sound) -> bytes:
        """See ``Client``."""
        return _checked(await self._send(self._hear(sound))).content

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._http.send(request)
        except httpx.TransportError as error:
            self._away(error)


def _told(answer: httpx.Response) -> dict[str, Any]:
    return dict(_checked(answer).json())


def _labels(answer: httpx.Response) -> dict[str, float]:
    (item,) = _told(answer)["items"]
    return {each["label"]: each["score"] for each in item["labels"]}


def _checked(answer: httpx.Response) -> httpx.Response:
    """Return an answer that is one; raise what its problem means."""
    if answer.is_success:
        return answer
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = answer.text
    if answer.status_code in NOT_ALLOWED:
        raise ConfigurationError(detail)
    if answer.status_code == NOT_FOUND:
        raise NotFound(detail)
    if answer.status_code in AT_FAULT:
        raise QueryError(detail)
    raise Unavailable(f"the query service says {answer.status_code}: {detail}")
