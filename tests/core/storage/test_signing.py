"""Signatures are those that botocore makes."""

import calendar
import time
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from audiofuse.core.storage.signing import Credentials, Signer

KEYS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")


@pytest.mark.parametrize("token", [None, "a/token+with=signs"])
@pytest.mark.parametrize("host", ["127.0.0.1:8333", "sounds.s3.eu-central-1.amazonaws.com"])
@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("HEAD", "/", ""),
        ("HEAD", "/sounds/" + quote("a//../b c+d%20é😀.wav", safe="/~"), ""),
        ("GET", "/sounds", "continuation-token=1%2F2%3D&encoding-type=url&list-type=2&prefix=a%2F"),
    ],
)
def test_a_request_is_signed_as_by_botocore(
    method: str, path: str, query: str, host: str, token: str | None
) -> None:
    """Every header that is signed, and the signature, are equal to the letter."""
    url = f"https://{host}{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url)
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(BotocoreCredentials(*KEYS[:2], token), "s3", "eu-central-1").add_auth(request)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    moment = time.strptime(theirs["x-amz-date"], "%Y%m%dT%H%M%SZ")
    signer = Signer(host, "eu-central-1", lambda: Credentials(*KEYS[:2], token))
    ours = dict(signer.headers(method, path, query, now=calendar.timegm(moment)))
    assert ours.pop("host") == host
    assert ours == theirs


def test_keys_that_changed_sign_at_once() -> None:
    """What was derived from one secret, or for one day, signs nothing of another."""
    present = [KEYS]
    signer = Signer("host", "us-east-1", lambda: present[0])

    def sign(now: float) -> str:
        return signer.headers("GET", "/", "", now)["authorization"].rpartition("=")[2]

    first, next_day = sign(0), sign(86_400)
    present[0] = Credentials("AKIDEXAMPLE", "another")
    other = sign(86_400)
    present[0] = KEYS
    assert len({first, next_day, other}) == 3
    assert (sign(86_400), sign(0)) == (next_day, first)
