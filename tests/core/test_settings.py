"""Settings: where each value comes from, and that secrets stay secret."""

import json
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import (
    DEPLOYMENT_FILE,
    PREFIX,
    Settings,
    environment,
    misspelt_settings,
    settings_table,
)

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home folder, with the current folder an empty one beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path / "home"


def _deploy(home: Path, **values: str) -> None:
    """Write what a running local deployment writes."""
    lines = [f"{PREFIX}{name.upper()}={json.dumps(value)}\n" for name, value in values.items()]
    (home / DEPLOYMENT_FILE).write_text("".join(lines))


def _row(settings: Settings, name: str) -> tuple[str, str]:
    """Return value and source of one setting."""
    rows = {row[0]: row for row in settings_table(settings)}
    _, value, source, _ = rows[PREFIX + name.upper()]
    return value, source


def test_environment_beats_dotenv_beats_deployment_beats_default(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source is taken where no nearer one speaks, and the table names the one taken."""
    assert _row(Settings(), "bucket") == ("", "default")
    _deploy(home, bucket="from-deployment", index_name="from-deployment")
    assert _row(Settings(), "bucket") == ("from-deployment", "local deployment")
    Path(".env").write_text("AUDIOFUSE_BUCKET=from-dotenv\n")
    assert _row(Settings(), "bucket") == ("from-dotenv", ".env")
    monkeypatch.setenv("AUDIOFUSE_BUCKET", "from-environment")
    assert _row(Settings(), "bucket") == ("from-environment", "environment")
    assert Settings(bucket="from-argument").bucket == "from-argument"
    assert _row(Settings(), "index_name") == ("from-deployment", "local deployment")


def test_a_stopped_deployment_leaves_no_settings(home: Path) -> None:
    """Once its file is gone, the deployment's values are gone."""
    _deploy(home, bucket="from-deployment")
    assert Settings().bucket == "from-deployment"
    (home / DEPLOYMENT_FILE).unlink()
    assert Settings().bucket == ""


def test_the_home_in_dotenv_is_where_the_deployment_is_looked_for(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that is set in .env rather than the environment is found too."""
    monkeypatch.delenv("AUDIOFUSE_HOME")
    other = tmp_path / "other"
    other.mkdir()
    Path(".env").write_text(f"AUDIOFUSE_HOME={other}\n")
    _deploy(other, bucket="from-other")
    _deploy(home, bucket="from-home")
    assert (Settings().home, Settings().bucket) == (other, "from-other")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_DATA_HOME": "/data"}, "/data/audiofuse"),
        ({"XDG_DATA_HOME": "", "HOME": "/users/me"}, "/users/me/.local/share/audiofuse"),
    ],
)
def test_without_a_home_state_lives_in_the_data_folder(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default home follows the XDG rules."""
    monkeypatch.delenv("AUDIOFUSE_HOME")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Settings().home == Path(expected)


@pytest.mark.parametrize("name", ["home", "encoder", "pretrained"])
def test_a_tilde_is_the_users_home(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a .env file no shell expands it, so the settings do, wherever the value comes from."""
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.delenv("AUDIOFUSE_HOME")
    expected = Path("/users/me/audio fuse")
    assert getattr(Settings.model_validate({name: "~/audio fuse"}), name) == expected
    Path(".env").write_text(f"{PREFIX}{name.upper()}=~/audio fuse\n")
    assert getattr(Settings(), name) == expected
    monkeypatch.setenv(PREFIX + name.upper(), "~/audio fuse")
    assert getattr(Settings(), name) == expected


def test_the_deployment_is_looked_for_in_a_home_with_a_tilde(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home written with a tilde is the same folder to every command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AUDIOFUSE_HOME", "~/home")
    _deploy(home, bucket="from-deployment")
    assert _row(Settings(), "bucket") == ("from-deployment", "local deployment")


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files and CI pass variables on as empty; they mean the default."""
    monkeypatch.setenv("AUDIOFUSE_DEVICE", "")
    monkeypatch.setenv("AUDIOFUSE_S3_ENDPOINT_URL", "")
    assert Settings().s3_endpoint_url is None
    assert _row(Settings(), "device") == ("auto", "default")


def test_other_programs_variables_in_dotenv_do_no_harm() -> None:
    """A .env shared with other programs is read for ours only."""
    Path(".env").write_text("DEBUG=1\nBUCKET=other\nAUDIOFUSE_LOG_LEVEL=DEBUG\n")
    assert Settings().log_level == "DEBUG"
    assert Settings().bucket == ""


@pytest.mark.parametrize("field", ["s3_secret_access_key", "broker_url", "qdrant_api_key"])
def test_secrets_are_hidden_wherever_settings_are_shown(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the table nor the repr nor JSON shows a secret, yet the program can read it."""
    monkeypatch.setenv(PREFIX + field.upper(), f"redis://:{SECRET}@host/0")
    settings = Settings()
    assert SECRET in getattr(settings, field).get_secret_value()
    for shown in (repr(settings), str(settings_table(settings)), settings.model_dump_json()):
        assert SECRET not in shown
    assert _row(settings, field) == ("**********", "environment")


def test_a_secret_may_lie_in_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable ending in _FILE names a secret's file, and only a secret's; a bad one is told."""
    (home / "key").write_text(f"{SECRET}\n")
    monkeypatch.setenv("AUDIOFUSE_QDRANT_API_KEY_FILE", str(home / "key"))
    key = Settings().qdrant_api_key
    assert key is not None
    assert key.get_secret_value() == SECRET
    assert _row(Settings(), "qdrant_api_key") == ("**********", "file")
    assert misspelt_settings() == []
    monkeypatch.setenv("AUDIOFUSE_BUCKET_FILE", str(home / "key"))
    assert Settings().bucket == ""
    assert [line.split()[0] for line in misspelt_settings()] == ["AUDIOFUSE_BUCKET_FILE"]
    (home / "key").unlink()
    with pytest.raises(ConfigurationError, match=r"AUDIOFUSE_QDRANT_API_KEY_FILE: .*No such file"):
        Settings()


def test_every_setting_is_in_the_table_and_described() -> None:
    """The table is complete, and no setting goes without a sentence."""
    rows = settings_table(Settings())
    assert [name for name, *_ in rows] == [PREFIX + f.upper() for f in Settings.model_fields]
    assert [name for name, *_, description in rows if not description.endswith(".")] == []


def test_whatever_looks_secret_is_a_secret() -> None:
    """A setting for a key or password is typed so that it cannot be shown by accident."""
    telling = ("secret", "password", "token", "api_key")
    for name, field in Settings.model_fields.items():
        if any(word in name for word in telling):
            assert SecretStr in getattr(field.annotation, "__args__", (field.annotation,)), name


def test_settings_are_read_once() -> None:
    """Nothing changes a setting while the program runs."""
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.bucket = "another"


def test_another_process_gets_what_was_set_here(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of every type and source survive the way through environment variables."""
    _deploy(home, index_name="from-deployment")
    Path(".env").write_text("AUDIOFUSE_DEVICE=cpu\n")
    given = Settings(
        bucket="s3://sounds",
        s3_secret_access_key=SECRET,
        broker_url=f"redis://:{SECRET}@host:1/0",
        encoder=home / "an encoder",
        max_duration_s=12.5,
        max_object_bytes=5,
        pretrained=None,
    )
    variables = environment(given)
    assert variables["AUDIOFUSE_S3_SECRET_ACCESS_KEY"] == SECRET
    assert "AUDIOFUSE_PRETRAINED" not in variables
    (home / DEPLOYMENT_FILE).unlink()
    Path(".env").unlink()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Settings() == given


def test_defaults_are_not_passed_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was set is handed over, so the other process keeps defaults of its own."""
    monkeypatch.delenv(f"{PREFIX}BATCH_S")
    assert environment(Settings(bucket="b")) == {
        "AUDIOFUSE_HOME": str(home),
        "AUDIOFUSE_BUCKET": "b",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("max_duration_s", "0"),
        ("max_duration_s", "-1"),
        ("max_duration_s", "nan"),
        ("max_duration_s", "an hour"),
        ("max_object_bytes", "0"),
        ("max_object_bytes", "4 GB"),
        ("index_name", "two words"),
        ("index_name", "a/b"),
        ("index_name", "x" * 65),
        ("log_level", "chatty"),
    ],
)
def test_a_bad_value_is_refused_and_its_setting_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that makes no sense stops the program before it does anything."""
    monkeypatch.setenv(PREFIX + name.upper(), value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


def test_a_worker_cannot_work_on_after_its_messages_come_back() -> None:
    """A grace period longer than the redelivery time is refused."""
    with pytest.raises(ValidationError, match=r"GRACE_S is 61.*REDELIVERY_S"):
        Settings(grace_s=61, redelivery_s=60)
    assert Settings(grace_s=60, redelivery_s=60).grace_s == 60
    assert Settings(redelivery_s=5).redelivery_s == 5  # the default gives way
