"""docker-compose.yml and its neighbours: valid, least rights, every name and port agrees."""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import compose
import pytest
import yaml

from audiofuse.core.settings import PREFIX, Settings, secret_names

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
# Ports that are their defaults.
WORLD = {"qdrant": 6333, "prometheus": 9090, "grafana": 3000, "alertmanager": 9093}
ROOT_FOR_A_MOMENT = "volumes"
OWNERS = {"operator", "improve"}  # who publishes encoders and takes steps of rollouts
METRICS_PORT = 9464
Config = dict[str, Any]


@pytest.fixture(scope="session")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an .env as `make compose-env` writes it."""
    path = tmp_path_factory.mktemp("compose") / ".env"
    subprocess.run(["sh", str(DEPLOY / "compose-env.sh"), str(path)], check=True)
    return path


def _compose(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # the package's own script ends with 0 whatever compose says
    program = Path(compose.__file__).with_name("docker-compose")
    command = [str(program), "--env-file", str(env_file), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def config(env_file: Path) -> Config:
    """Return what compose makes of the file, all profiles."""
    done = _compose(env_file, "--profile", "*", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    # compose doubles dollars, so that what it prints could be read again
    return dict(json.loads(done.stdout.replace("$$", "$")))


@pytest.fixture(scope="session")
def services(config: Config) -> dict[str, Config]:
    """Return the services by name."""
    return dict(config["services"])


def _ours(services: dict[str, Config]) -> dict[str, Config]:
    return {name: each for name, each in services.items() if each["image"].startswith("audiofuse:")}


def _addresses(service: Config) -> Iterator[tuple[str, int]]:
    """Yield host and port of each address that a service is given, itself aside."""
    values = [*service.get("environment", {}).values(), *(service.get("command") or ())]
    for value in values:
        for url in re.findall(r"\w+://[^\s\"]+", value or ""):
            parts = urlsplit(url)
            if parts.port and parts.hostname not in {"0.0.0.0", "127.0.0.1"}:
                yield str(parts.hostname), parts.port


def _listens(name: str, service: Config) -> set[int]:
    """Return the ports on which a service says that it listens, or that are its default."""
    text = " ".join([*(service.get("command") or ()), *service.get("environment", {}).values()])
    said = re.findall(r"(?:-s3\.port=|--port |0\.0\.0\.0:)(\d+)", text)
    return {int(port) for port in said} | ({WORLD[name]} if name in WORLD else set())


def test_without_an_env_file_compose_says_what_to_do(tmp_path: Path) -> None:
    """Nothing starts with an empty or well-known password."""
    (tmp_path / "none").touch()
    done = _compose(tmp_path / "none", "config", "--quiet")
    assert done.returncode != 0
    assert "run make compose-env" in done.stderr


def _secret_files(env_file: Path) -> dict[str, Path]:
    return {path.name: path for path in (env_file.parent / ".secrets").iterdir()}


def test_secrets_are_random_private_and_never_overwritten(env_file: Path, tmp_path: Path) -> None:
    """Two deployments share no secret, nobody else gets at the files, what is missing is added."""
    script = ["sh", str(DEPLOY / "compose-env.sh")]
    other = tmp_path / ".env"
    done = subprocess.run([*script, str(other)], check=True, capture_output=True)
    assert not done.stderr
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / ".secrets").stat().st_mode) == 0o700
    texts = [[x.read_text() for x in _secret_files(each).values()] for each in (env_file, other)]
    secrets = [
        {each for text in some for each in re.findall(r"[0-9a-f]{48}", text)} for some in texts
    ]
    assert len(secrets[0]) == len(secrets[1]) == 10
    assert not secrets[0] & secrets[1]
    other.write_text(other.read_text().replace("UPLOADS=", "UPLOADS=true"))
    before = {x: x.read_text() for x in (other, *_secret_files(other).values())}
    (lost := tmp_path / ".secrets" / "s3_search").unlink()
    subprocess.run([*script, str(other)], check=True, capture_output=True)
    assert {x for x, text in before.items() if x.read_text() != text} == {lost}


def test_each_service_is_shown_the_secrets_that_it_reads(
    services: dict[str, Config], config: Config, env_file: Path
) -> None:
    """Passwords are files and in no environment; whoever is shown one reads it, and nobody else."""
    files = _secret_files(env_file)
    assert {x["file"] for x in config["secrets"].values()} == set(map(str, files.values()))
    shown_to = {}
    for name, each in services.items():
        shown_to[name] = {secret["source"] for secret in each.get("secrets", ())}
        read = re.findall(r"/run/secrets/(\w+)", json.dumps(each))
        assert set(read) == shown_to[name], name
        assert not [x for x in files.values() if x.read_text() in json.dumps(each)], name
    assert "s3_owner" not in set().union(
        *(shown_to[name] for name in shown_to if name not in {"s3", "begin", *OWNERS})
    )
    assert shown_to["intake"] == {"broker_url", "webhook_token"}
    assert shown_to["uploader"] == {"s3_uploader"}
    assert {name for name in shown_to if "s3_search" in shown_to[name]} == {"s3", "search"}
    assert "s3_reader" not in shown_to["search"]
    changing = {name for name in shown_to if "qdrant_api_key" in shown_to[name]} - {"qdrant"}
    assert changing == {"worker", "worker-gpu", *OWNERS}


def test_every_service_has_the_least_rights(services: dict[str, Config]) -> None:
    """Not root, no capability, nothing to write but what is mounted, and a limit to all it takes.

    One is root, for a moment, with the right to change owners and without a network.
    """
    for name, each in services.items():
        assert each["read_only"], name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit"} <= set(each), name
        if name == ROOT_FOR_A_MOMENT:
            assert each["cap_add"] == ["CHOWN"]
            assert each["network_mode"] == "none"
        else:
            assert each["user"].split(":")[0] not in {"0", "root"}, name
            assert "cap_add" not in each, name
            assert "cpus" in each, name


def test_it_starts_on_two_cores(services: dict[str, Config], env_file: Path) -> None:
    """Docker refuses limits above the machine's CPUs: none is, by the .env made here or without."""
    cpus = os.cpu_count() or 1
    assert all(float(each.get("cpus", 0)) <= cpus for each in services.values())
    text = (ROOT / "docker-compose.yml").read_text()
    limits = re.findall(r"^ +cpus: (\S+)$", text, re.MULTILINE)
    assert set(limits) == {"1", "${SERVICE_CPUS:-2}", "${WORKER_CPUS:-2}"}
    written = dict(re.findall(r"^(\w+_CPUS)=(\d+)$", env_file.read_text(), re.MULTILINE))
    assert written.keys() == {"SERVICE_CPUS", "WORKER_CPUS"}


def test_numerical_libraries_start_as_many_threads_as_are_allowed(
    services: dict[str, Config],
) -> None:
    """Each of our services says its CPU limit to libraries that would count the machine's CPUs."""
    for name, each in _ours(services).items():
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            assert float(each["environment"][variable]) == float(each["cpus"]), name


def test_the_deployment_is_not_named_after_its_folder(config: Config) -> None:
    """A renamed or second checkout finds the volumes, and so the sounds, of the first."""
    assert config["name"] == "audiofuse"
    assert {each["name"] for each in config["volumes"].values()} == {
        f"audiofuse_{name}" for name in config["volumes"]
    }


def test_our_own_image_is_never_pulled(services: dict[str, Config]) -> None:
    """It is built here: whatever a registry has by that name is somebody else's."""
    assert {each["pull_policy"] for each in _ours(services).values()} == {"never"}


def test_storage_sends_its_events_by_way_of_its_own_loopback(services: dict[str, Config]) -> None:
    """SeaweedFS sends from the address that it is bound to: from the loopback to the loopback."""
    (command,) = services["s3"]["command"]
    assert "-ip.bind=127.0.0.1" in command
    endpoint = urlsplit(re.findall(r'^endpoint = "(.+)"$', command, re.MULTILINE)[0])
    assert endpoint.hostname == "127.0.0.1"
    relay = rf"nc -ll -p {endpoint.port} -e sh -c 'until nc intake {endpoint.port}; do"
    assert relay in command
    assert command.index(relay) < command.index("exec weed")
    assert endpoint.port in _listens("intake", services["intake"])


def test_storage_takes_no_identity_from_whoever_reaches_it(services: dict[str, Config]) -> None:
    """The port for identities is as open as that for S3: it wants a token of a key drawn anew."""
    (command,) = services["s3"]["command"]
    written = re.findall(r"cat > security.toml <<END\n(.+?)\nEND", command, re.DOTALL)
    assert re.fullmatch(
        r'\[jwt.filer_signing\]\nkey = "\$\(head -c 24 /dev/urandom .+\)"', *written
    )
    assert command.index("security.toml") < command.index("exec weed")


def test_qdrant_is_told_to_end_and_given_time(services: dict[str, Config]) -> None:
    """The signal reaches Qdrant itself, not a script that ends before it does."""
    qdrant = services["qdrant"]
    assert qdrant["init"]
    assert qdrant["command"][0].splitlines()[-1].startswith("exec /qdrant/qdrant ")
    assert qdrant["stop_grace_period"] == "1m0s"


def test_no_limit_is_above_what_docker_may_allow(services: dict[str, Config]) -> None:
    """Docker refuses to start what asks for more open files than its own hard limit."""
    assert not [name for name, each in services.items() if "ulimits" in each]


def test_restoring_never_takes_the_sounds(config: Config) -> None:
    """The commands in operations.md remove volumes by name: never all, never that of storage."""
    page = (DEPLOY / "operations.md").read_text()
    commands = "\n".join(re.findall(r"```sh\n(.+?)```", page, re.DOTALL))
    assert not re.search(r"down.*(--volumes|-v\b)|volume prune", commands)
    removed = {
        each for line in re.findall(r"docker volume rm (.+)", commands) for each in line.split()
    }
    assert removed == {"audiofuse_qdrant", "audiofuse_valkey"}
    assert removed <= {each["name"] for each in config["volumes"].values()}


def test_every_image_has_a_version(services: dict[str, Config]) -> None:
    """Nothing is pulled by a name that means another image next month without anybody's doing."""
    for name, each in services.items():
        tag = each["image"].partition("@")[0].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag) or each["image"] == "audiofuse:cpu", name


def test_nothing_listens_beyond_the_loopback(services: dict[str, Config]) -> None:
    """Every published port is this machine's only, and only what has one is on that network."""
    for name, each in services.items():
        for port in each.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
            assert int(port["published"]) == port["target"]
            assert port["target"] in _listens(name, each), name
        assert ("outside" in each.get("networks", {})) == bool(each.get("ports")), name


def test_links_to_sounds_lead_to_the_published_port(services: dict[str, Config]) -> None:
    """A browser reaches the storage where compose publishes it."""
    (port,) = services["s3"]["ports"]
    public = services["search"]["environment"]["AUDIOFUSE_S3_PUBLIC_URL"]
    assert public == f"http://{port['host_ip']}:{port['published']}"


def test_the_network_inside_has_no_way_out(config: Config) -> None:
    """What decodes foreign files can send nothing to anybody: nor can those with a port."""
    networks, services = config["networks"], config["services"]
    assert networks.keys() == {"inside", "outside", "world"}
    assert {name for name in services if "world" in services[name].get("networks", {})} == {
        "alertmanager"
    }
    assert services["alertmanager"]["profiles"] == ["alerts"]
    assert networks["inside"]["internal"]
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    assert networks["outside"]["driver_opts"][masquerade] == "false"


def test_every_address_is_that_of_a_service_that_listens_there(services: dict[str, Config]) -> None:
    """Each host in a setting is a service on the same network, with that port, and waited for."""
    for name, each in services.items():
        for host, port in _addresses(each):
            assert port in _listens(host, services[host]), f"{name} asks {host}:{port}"
            assert set(each["networks"]) & set(services[host]["networks"])


def test_who_asks_a_service_waits_for_its_health(services: dict[str, Config]) -> None:
    """Nothing of ours starts before broker, index and storage answer."""

    def waits_for(name: str) -> set[str]:
        direct = set(services[name].get("depends_on", {}))
        return direct.union(*(waits_for(other) for other in direct))

    for name in set(_ours(services)) - {"operator", "uploader"}:
        asked = {host for host, _ in _addresses(services[name])} - {"search"}
        missing = asked - waits_for(name) - ({"s3", "qdrant"} if name == "intake" else set())
        assert not missing, name
    for name, each in services.items():
        for other, how in each.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"], f"{name} waits for {other}"


def test_every_setting_exists_and_has_a_value_that_it_takes(services: dict[str, Config]) -> None:
    """Each AUDIOFUSE_ variable of compose and the Dockerfile is a setting, and its value is one."""
    for each in _ours(services).values():
        given = {k: v for k, v in each["environment"].items() if k.startswith(PREFIX)}
        names = {name.removeprefix(PREFIX).lower(): value for name, value in given.items()}
        for name in secret_names():
            if names.pop(f"{name}_file", None):
                names[name] = "x:" + "0" * 48
        assert names.keys() <= Settings.model_fields.keys()
        Settings(**{name: value for name, value in names.items() if value})  # empty is unset
    for name in re.findall(PREFIX + r"(\w+)=", (DEPLOY / "Dockerfile").read_text()):
        assert name.lower() in Settings.model_fields


def test_how_many_processes_take_messages_is_said_in_env(env_file: Path, tmp_path: Path) -> None:
    """WORKER_PROCESSES reaches every worker; as it is written, a worker's CPUs decide."""
    two = tmp_path / ".env"
    written = env_file.read_text()
    two.write_text(written.replace("WORKER_PROCESSES=\n", "WORKER_PROCESSES=2\n"))
    for path, said in ((env_file, ""), (two, "2")):
        done = _compose(path, "--profile", "*", "config", "--format", "json")
        for name in ("worker", "worker-gpu"):
            environment = json.loads(done.stdout)["services"][name]["environment"]
            assert environment["AUDIOFUSE_PROCESSES"] == said


def test_what_is_written_for_compose_misleads_no_command(env_file: Path) -> None:
    """In the checkout commands read the same .env: nothing there is, or looks like, a setting."""
    assert "COMPOSE_PROFILES=" in env_file.read_text()
    assert PREFIX not in env_file.read_text()


def test_every_volume_belongs_to_who_writes_it(services: dict[str, Config], config: Config) -> None:
    """Before anything starts each volume is given to the user of the services that mount it."""
    mover = services[ROOT_FOR_A_MOMENT]
    owners = {}
    for part in mover["command"][0].split(";"):
        _, owner, *paths = part.split()
        owners |= {path.removeprefix("/"): owner for path in paths}
    assert owners.keys() == config["volumes"].keys()
    for name, each in services.items():
        for volume in each.get("volumes", ()) if name != ROOT_FOR_A_MOMENT else ():
            if volume["type"] == "bind":
                assert volume["read_only"]
                assert Path(volume["source"]).exists(), volume
            else:
                assert owners[volume["source"]] == each["user"], name


def test_a_listing_outlives_its_container(services: dict[str, Config]) -> None:
    """Who lists the bucket has a home that lasts, where the next one finds how far it came."""
    for name in ("reconcile", "operator"):
        lasting = {x["target"] for x in services[name]["volumes"] if x["type"] == "volume"}
        assert "/var/lib/audiofuse" in lasting, name


def test_a_worker_may_finish_before_it_is_killed(services: dict[str, Config]) -> None:
    """The time that compose gives is longer than the worker takes to hand back its messages."""
    for name in ("worker", "worker-gpu"):
        grace = services[name]["stop_grace_period"]
        minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", grace).groups()  # type: ignore[union-attr]
        assert int(minutes or 0) * 60 + int(seconds or 0) > Settings().grace_s + 15


def test_the_gpu_is_asked_for_and_not_replaced_unseen(services: dict[str, Config]) -> None:
    """The GPU profile reserves one, and its worker refuses to run on the CPU instead."""
    worker = services["worker-gpu"]
    devices = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (devices[0]["driver"], devices[0]["count"]) == ("nvidia", 1)
    assert worker["environment"]["AUDIOFUSE_DEVICE"] == "cuda"


def test_health_is_asked_where_the_command_listens(services: dict[str, Config]) -> None:
    """Each check asks a port on which its own service listens."""
    for name, each in services.items():
        check = " ".join(each.get("healthcheck", {}).get("test", ()))
        for port in re.findall(r"127\.0\.0\.1[:/](\d+)|-p (\d+)", check):
            assert int(next(filter(None, port))) in _listens(name, each), name
        assert check or name in {ROOT_FOR_A_MOMENT, "begin", *OWNERS, "uploader"}, name


def test_prometheus_asks_every_process_that_tells(services: dict[str, Config]) -> None:
    """Each service with metrics is scraped, at its port, under the name of its kind."""
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (discovery,) = prometheus["scrape_configs"][0]["dns_sd_configs"]
    tell = {name for name, each in _ours(services).items() if METRICS_PORT in _listens(name, each)}
    assert set(discovery["names"]) == tell - OWNERS
    assert discovery["port"] == METRICS_PORT


def test_grafana_asks_prometheus(services: dict[str, Config]) -> None:
    """The provisioned data source is the Prometheus of this deployment, the folder is mounted."""
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    url = urlsplit(source["url"])
    assert url.port in _listens(str(url.hostname), services[str(url.hostname)])
    (provider,) = yaml.safe_load((folder / "dashboards/audiofuse.yml").read_text())["providers"]
    mounted = {each["target"]: each["source"] for each in services["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(mounted[str(Path(home).parent)], Path(home).name).exists()
