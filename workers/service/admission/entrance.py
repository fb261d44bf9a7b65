"""The entrance of a service: who may reach it, and what every request and answer passes."""

from ipaddress import ip_address

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import Settings
from audiofuse.workers.service.admission.guard import MAX_BODY_BYTES, Guard, Rates, SafeHeaders
from audiofuse.workers.service.admission.keys import Keys
from audiofuse.workers.service.admission.measured import Measured
from audiofuse.workers.service.admission.problems import explain_errors


def add_entrance(  # noqa: PLR0913 - whom it concerns, and what they may
    app: FastAPI, settings: Settings, keys: Keys, sounds: str, *,
    fetched: str | None = None, upload_bytes: int = MAX_BODY_BYTES,
) -> None:  # fmt: skip
    """Have ``app`` ask for keys, keep limits, explain errors, and measure, as the settings say.

    ``sounds`` and ``fetched`` are those of ``SafeHeaders``, ``upload_bytes`` that of ``Guard``.
    """
    explain_errors(app)
    rates = Rates(settings.rate_limit) if settings.rate_limit else None
    app.add_middleware(Guard, keys, rates, settings.max_query_bytes, upload_bytes)
    app.add_middleware(SafeHeaders, sounds, fetched)
    if settings.cors_origins:
        origins = [origin.strip() for origin in settings.cors_origins.split(",")]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    app.add_middleware(Measured)


def check_exposure(host: str, settings: Settings, *, is_open: bool) -> None:
    """Raise ``ConfigurationError`` if other machines could ask without a key, unless wanted."""
    if not (is_open or Keys(settings.api_keys) or _is_loopback(host)):
        raise ConfigurationError(
            f"whoever reaches {host} could search everything: set AUDIOFUSE_API_KEYS, "
            "or say --open if that is wanted"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
