"""Deployment values, read once at the entry point: environment, files, ``.env``, deployment."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from audiofuse.core.cores import usable_cpus
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.homes import DEPLOYMENT_FILE, default_home, deployment_file

PREFIX = "AUDIOFUSE_"
FILE = "_FILE"  # AUDIOFUSE_QDRANT_API_KEY_FILE names a file with the value, as Docker's secrets are
OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP)|$)")


HomePath = Annotated[Path, AfterValidator(Path.expanduser)]  # ~ is the user's home


def _is_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("there is no such file")
    return path


class Settings(BaseSettings):
    """Everything an operator can set; the model's own shape is in the bundle's config.json."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    home: HomePath = Field(
        default_factory=default_home,
        description="Folder of the local deployment: queue, index, bundles, logs.",
    )
    bucket: str = Field(default="", description="The bucket to index: s3://name, or a folder.")
    buckets: SecretStr | None = Field(
        default=None,
        description="Several buckets instead, as JSON: "
        '[{"name": "field", "address": "s3://field/2026/"}, ...]; each may have its own '
        "endpoint_url, public_url, region, access_key_id and secret_access_key.",
    )
    s3_endpoint_url: str | None = Field(
        default=None, description="S3 endpoint; unset means AWS. SQS is reached there too."
    )
    s3_public_url: str | None = Field(
        default=None,
        description="The same endpoint as browsers reach it, for links to sounds; unset: as above.",
    )
    s3_region: str = Field(default="us-east-1", description="Region of bucket and queue.")
    s3_access_key_id: str | None = Field(
        default=None, description="Access key; unset means boto3's own credential chain."
    )
    s3_secret_access_key: SecretStr | None = Field(
        default=None, description="Secret that belongs to the access key."
    )
    sqs_queue_url: str = Field(
        default="", description="SQS queue that receives the bucket's event notifications."
    )
    redis_events_key: str = Field(
        default="", description="Redis list that receives the bucket's events, as MinIO writes it."
    )
    redis_events_url: SecretStr | None = Field(
        default=None, description="Redis that holds that list; unset means the broker."
    )
    webhook_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Secret with which the storage posts the bucket's events to the webhook.",
    )
    webhook_listen: str = Field(
        default="127.0.0.1:7701",
        pattern=r"^.+:\d{1,5}$",
        description="Address and port on which the webhook listens; 0.0.0.0 for other machines.",
    )
    broker_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis or Valkey: Celery's broker, dead letters, delivery counts.",
    )
    qdrant_url: str = Field(default="http://127.0.0.1:6333", description="Qdrant server.")
    qdrant_api_key: SecretStr | None = Field(default=None, description="Qdrant API key.")
    qdrant_shards: int | None = Field(
        default=None, ge=1, description="Shards of a new collection on a Qdrant cluster."
    )
    qdrant_replicas: int | None = Field(
        default=None, ge=1, description="Copies of each of them, on as many nodes."
    )
    qdrant_vectors: Literal["float32", "float16", "int8"] = Field(
        default="float32",
        description="How a new collection keeps item vectors; int8: those in memory, with the "
        "originals on disk.",
    )
    qdrant_oversampling: float | None = Field(
        default=None,
        ge=1,
        le=10,
        description="How many times as many hits are looked up by int8 vectors as are ranked by "
        "the originals: 2 finds all that they would; unset: Qdrant decides.",
    )
    ca_file: Annotated[HomePath, AfterValidator(_is_file)] | None = Field(
        default=None,
        description="Certificates (PEM) by which broker, Qdrant and S3 are known over TLS, if they "
        "are not those that this machine trusts.",
    )
    index_name: str = Field(
        default="audiofuse",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Alias that names the live index; collections and the queue's keys begin with "
        "it.",
    )
    encoder: HomePath | None = Field(
        default=None, description="Folder of the encoder bundle that workers and search load."
    )
    registry: str = Field(
        default="",
        description="Where encoders are published and rollouts are kept: s3://bucket/prefix or a "
        "folder; unset: encoders under AUDIOFUSE_HOME.",
    )
    gate_queries: HomePath | None = Field(
        default=None,
        description="Manifest of clips with queries by which a new encoder is judged before it "
        "goes live.",
    )
    moments: Literal["on", "off"] = Field(
        default="on",
        description="Whether recordings that are longer than one window are searched by their "
        "moments, too; one value for a fleet.",
    )
    moment_window_s: float | None = Field(
        default=None,
        ge=1,
        le=60,
        description="Length of these windows in seconds: longer ones take less storage; unset: as "
        "the encoder says; one value for a fleet.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where encoders run. auto: a GPU if there is one; cuda: refuse without one.",
    )
    precision: Literal["float32", "float16"] = Field(
        default="float32",
        description="In which numbers a GPU computes. float16 is refused for an encoder that it "
        "changes too much, and on a CPU.",
    )
    pretrained: HomePath | None = Field(
        default=None,
        description="Folder searched for pretrained checkpoints before they are downloaded.",
    )
    search_url: str = Field(
        default="http://127.0.0.1:7700",
        description="Query services, separated by commas: `audiofuse search` asks the first that "
        "answers.",
    )
    ask: str = Field(
        default="",
        description="Deployments that `audiofuse serve` asks instead of an index of its own: "
        "name=URL or URL, separated by commas.",
    )
    ask_keys: SecretStr | None = Field(
        default=None,
        description="API keys with which these are asked: name:key, separated by commas.",
    )
    ask_s: float = Field(
        default=5, gt=0, description="Seconds that an answer waits for each of them."
    )
    search_key: SecretStr | None = Field(
        default=None, description="API key with which `audiofuse search` asks, if one is needed."
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="Who may ask the query service: name:key, name:key:scope+scope or "
        "name:key:scope@folder/+folder/, separated by commas; scopes: search, audio, export, "
        "feedback, repair, upload; without any all but the last. Unset: everybody on this machine.",
    )
    uploads: bool = Field(
        default=False,
        description="Whether the query service puts sounds and sidecars into the bucket, for keys "
        "with the scope upload; without keys for everybody on this machine.",
    )
    feedback: bool = Field(
        default=False,
        description="Whether the query service takes verdicts of hits, and keeps them, with the "
        "questions and who asked, in the registry.",
    )
    rate_limit: float | None = Field(
        default=None,
        gt=0,
        description="Requests a second that the query service takes from one key, or from one "
        "address; unset: any number.",
    )
    max_query_bytes: int = Field(
        default=50 * 1024**2, gt=0, description="Largest sound to search by, in bytes."
    )
    cors_origins: str = Field(
        default="",
        description="Origins of other web pages that may ask the query service, separated by "
        "commas.",
    )
    max_duration_s: float = Field(
        default=4 * 3600.0, gt=0, description="Longest recording that is indexed, in seconds."
    )
    max_object_bytes: int = Field(
        default=4 * 1024**3, gt=0, description="Largest audio object that is fetched, in bytes."
    )
    batch_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds of audio in a worker's batch; unset: it measures what is worth it.",
    )
    in_hand: int = Field(
        default=128,
        ge=1,
        description="Messages that each of a worker's processes works on at once.",
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        description="Processes of a worker that take messages; unset: as its CPUs suggest.",
    )
    device_socket: Path | None = Field(
        default=None,
        description="Unix socket of the device process that a worker's processes share; "
        "`audiofuse worker` sets it for them.",
    )
    decoders: int = Field(
        default_factory=usable_cpus,
        ge=1,
        description="Decoding processes of a worker, in all.",
    )
    decode_timeout_s: float = Field(
        default=60, gt=0, description="Decoding that makes no progress for so long is killed."
    )
    fetch_bytes: int = Field(
        default=8 * 1024**3, gt=0, description="Disk that a worker's downloads may take, in bytes."
    )
    redelivery_s: int = Field(
        default=60,
        ge=5,
        description="A killed worker's messages come back after so long; one value for a fleet.",
    )
    grace_s: float = Field(
        default=10,
        ge=0,
        description="After SIGTERM a worker finishes for so long, then hands back the rest; at "
        "most as long as it takes until lost messages come back.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe message that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="How it is logged: a line to read, or a JSON object, each."
    )
    metrics_listen: str = Field(
        default="",
        pattern=r"^(.+:\d{1,5}|unix:.+)?$",
        description="Address and port at which a process tells its metrics, or unix: and the path "
        "of a socket; unset: nowhere.",
    )
    traces_url: str = Field(
        default="",
        description="Where traces are sent, by OTLP over HTTP, e.g. http://host:4318/v1/traces; "
        "unset: nowhere.",
    )

    @property
    def registry_place(self) -> str:
        """Where the registry is, as it was given or by default."""
        return (self.registry or str(self.home / "encoders")).rstrip("/")

    @model_validator(mode="after")
    def _stops_before_redelivery(self) -> Self:
        """Refuse that a stopping worker still works on what others have been given."""
        if "grace_s" in self.model_fields_set and self.grace_s > self.redelivery_s:
            raise ValueError(
                f"{PREFIX}GRACE_S is {self.grace_s:g}, longer than {PREFIX}REDELIVERY_S, which is "
                f"{self.redelivery_s}: messages that a worker finishes while it stops would be "
                "delivered to another"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order: arguments, environment, files that it names, ``.env``, the local deployment."""
        del file_secret_settings
        home = env_settings().get("home") or dotenv_settings().get("home")
        deployment = DotEnvSettingsSource(settings_cls, env_file=deployment_file(home))
        files = InitSettingsSource(settings_cls, secrets_in_files())
        return init_settings, env_settings, files, dotenv_settings, deployment


def secret_names() -> list[str]:
    """Return the names of all settings that are secrets: these may lie in files."""
    fields = Settings.model_fields.items()
    return [n for n, each in fields if SecretStr in {each.annotation, *get_args(each.annotation)}]


def secrets_in_files() -> dict[str, str]:
    """Return the secrets whose files the environment names, by the settings' names.

    Others may see a process's environment; a file is seen by whom it is shown to. Raises
    ``ConfigurationError`` where a file cannot be read.
    """
    named = {name: os.environ.get(PREFIX + name.upper() + FILE) for name in secret_names()}
    return {name: _secret_in(name, path) for name, path in named.items() if path}


def _secret_in(name: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{PREFIX}{name.upper()}{FILE}: {error}") from error


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables that give another process what was set here, secrets too."""
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    return {
        PREFIX + name.upper(): (
            value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        )
        for name, value in values.items()
        if value is not None
    }


def settings_table(settings: Settings) -> list[tuple[str, str, str, str]]:
    """Tell each setting's variable, value (secrets hidden), source and description."""
    sources = {
        "environment": EnvSettingsSource(Settings)(),
        "file": secrets_in_files(),
        ".env": DotEnvSettingsSource(Settings)(),
        "local deployment": DotEnvSettingsSource(
            Settings, env_file=settings.home / DEPLOYMENT_FILE
        )(),
    }
    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        source = next((title for title, values in sources.items() if name in values), "default")
        shown = "" if value is None else str(value)
        rows.append((PREFIX + name.upper(), shown, source, field.description or ""))
    return rows


def misspelt_settings() -> list[str]:
    """Return a line for each variable that looks like a setting and is none, with what is meant.

    Kubernetes' own variables for a service named audiofuse-... are none of these.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    known += [PREFIX + name.upper() + FILE for name in secret_names()]
    given = {*os.environ, *dotenv_values(".env")}
    lines = []
    for name in sorted(given):
        if name.startswith(PREFIX) and name not in known and not OF_KUBERNETES.search(name):
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"is {near[0]} meant?" if near else "audiofuse settings lists all"
            lines.append(f"{name} is no setting and changes nothing: {meant}")
    return lines
