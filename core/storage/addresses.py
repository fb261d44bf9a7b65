"""Where a bucket is and how one gets in, as far as it takes to ask it without boto3."""

import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from audiofuse.core.storage.connections import Connections, Refuses
from audiofuse.core.storage.signing import Credentials, Signer

if TYPE_CHECKING:
    from audiofuse.core.settings import Settings

PORTS = {"http": 80, "https": 443}
# Variables that say nothing where the settings name endpoint, region, keys and authority.
WITHOUT_A_SAY = {"AWS_CA_BUNDLE", "AWS_REGION", "AWS_DEFAULT_REGION"}
PLAIN_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
PLAIN_REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
PLAIN_ENDPOINT = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?/?")


@dataclass(frozen=True)
class Address:
    """A bucket's URL, what signs for it, and who may vouch for its server."""

    url: str  # without a slash at its end: what follows is a slash and the key
    region: str
    credentials: Callable[[], Credentials]  # may raise ``Unanswered``
    ca_file: Path | None  # with the authorities that are trusted; only where the scheme is https

    def connections(self) -> Connections:
        """Return what connects to the server; raises ``Refuses`` where boto3 has to."""
        scheme, netloc, *_ = urlsplit(self.url)
        if scheme in getproxies() and not proxy_bypass(netloc):
            raise Refuses(f"{self.url} is reached through a proxy")
        return Connections(self._host, self._port, self._tls() if scheme == "https" else None)

    @property
    def signer(self) -> Signer:
        """What signs requests."""
        scheme, *_ = urlsplit(self.url)
        host = f"[{self._host}]" if ":" in self._host else self._host
        named = host if self._port == PORTS[scheme] else f"{host}:{self._port}"
        return Signer(named, self.region, self.credentials)

    @property
    def path(self) -> str:
        """The path of the bucket, without a slash at its end."""
        return urlsplit(self.url).path

    @property
    def _host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def _port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or PORTS[parts.scheme]

    def _tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.ca_file)
        except OSError as error:
            raise Refuses(f"no authorities in {self.ca_file}: {error}") from error
        return context


def plain_address(settings: "Settings", bucket: str) -> Address | None:
    """Return the address where the settings alone have it, so that boto3 need not be loaded.

    That is so with an endpoint of one's own and keys, while nothing else tells boto3 anything.
    """
    endpoint, secret = settings.s3_endpoint_url or "", settings.s3_secret_access_key
    if not (settings.s3_access_key_id and secret and PLAIN_ENDPOINT.fullmatch(endpoint)):
        return None
    if not (PLAIN_BUCKET.fullmatch(bucket) and PLAIN_REGION.fullmatch(settings.s3_region)):
        return None
    if endpoint.startswith("https:") and not settings.ca_file:
        return None
    if _boto3_is_configured():
        return None
    keys = Credentials(settings.s3_access_key_id, secret.get_secret_value())
    return Address(
        f"{endpoint.rstrip('/')}/{bucket}",
        settings.s3_region,
        partial(Credentials, *keys),
        settings.ca_file,
    )


def _boto3_is_configured() -> bool:
    named = {name for name in os.environ if name.startswith("AWS_")} - WITHOUT_A_SAY
    return bool(named) or Path("~/.aws").expanduser().exists()
