"""AWS Signature Version 4 of requests without a body, as all S3 servers know it.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

ALGORITHM = "AWS4-HMAC-SHA256"
NO_BODY = hashlib.sha256(b"").hexdigest()
SERVICE = "s3"


class Credentials(NamedTuple):
    """Keys, and the token of those that expire."""

    access_key: str
    secret_key: str
    token: str | None = None


class Signer:
    """Signs requests to one host; the credentials are asked for each time, as they may change."""

    def __init__(self, host: str, region: str, credentials: Callable[[], Credentials]) -> None:
        """Sign for ``host``, with its port unless that is the scheme's own, in ``region``."""
        self._host = host
        self._region = region
        self._credentials = credentials
        self._derived: tuple[str, str, bytes] = ("", "", b"")  # secret, day, and the key from both

    def headers(
        self, method: str, path: str, query: str, now: float | None = None
    ) -> Mapping[str, str]:
        """Return the headers of a request; ``path`` and ``query`` are as they are sent.

        Parameters of the query have to be in the order of their names. ``now`` is in seconds since
        1970, by default the present.
        """
        access_key, secret, token = self._credentials()
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        day = moment[:8]
        headers = {"host": self._host, "x-amz-content-sha256": NO_BODY, "x-amz-date": moment}
        if token:
            headers["x-amz-security-token"] = token  # the names stay in their order
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        names = ";".join(headers)
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{NO_BODY}"
        scope = f"{day}/{self._region}/{SERVICE}/aws4_request"
        signed = f"{ALGORITHM}\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key(secret, day), signed.encode(), "sha256").hex()
        headers["authorization"] = (
            f"{ALGORITHM} Credential={access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}"
        )
        return headers

    def _key(self, secret: str, day: str) -> bytes:
        """Return the key of one day, region and service."""
        for_secret, for_day, key = self._derived
        if (for_secret, for_day) != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, SERVICE, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._derived = secret, day, key
        return key
