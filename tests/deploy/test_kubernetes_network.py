"""deploy/kubernetes: who reaches whom, and that ports and labels mean what is there."""

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from manifests import (
    COMPONENT,
    DEPLOY,
    PART_OF,
    Manifest,
    build,
    containers,
    copied,
    of_kind,
    parse,
    pods,
    selected,
)

BROADEST = 16  # bits: a rule for more addresses is a way out
METADATA = ip_network("169.254.169.254/32")
SETTINGS_OF_OTHERS = ("AUDIOFUSE_QDRANT_URL", "AUDIOFUSE_S3_ENDPOINT_URL")


@pytest.fixture(scope="module", params=("cpu", "gpu", "demo"))
def manifests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Manifest]:
    """Return what kustomize builds of each overlay that runs audiofuse."""
    return parse(build(copied(tmp_path_factory.mktemp("deploy")) / request.param))


def _rules(manifests: list[Manifest], way: str) -> Iterator[tuple[Manifest, Manifest]]:
    """Yield each rule of one way, ``ingress`` or ``egress``, with its policy."""
    for policy in of_kind(manifests, "NetworkPolicy").values():
        for rule in policy["spec"].get(way, ()):
            yield policy, rule


def _ports(manifests: list[Manifest]) -> dict[str, dict[int, str]]:
    """Return the names of each pod's ports, by number."""
    found: dict[str, dict[int, str]] = {name: {} for name in pods(manifests)}
    for name, container in containers(manifests):
        found[name] |= {each["containerPort"]: each["name"] for each in container.get("ports", ())}
    return found


def test_ports_and_selectors_agree(manifests: list[Manifest]) -> None:
    """Services, budgets and probes mean pods that exist, at ports that those have."""
    ports = _ports(manifests)
    for service in of_kind(manifests, "Service").values():
        name = service["spec"]["selector"][COMPONENT]
        (port,) = service["spec"]["ports"]
        assert ports[name][port["port"]] == port["targetPort"]
    for name, budget in of_kind(manifests, "PodDisruptionBudget").items():
        assert selected(manifests, budget["spec"]["selector"]) == {name}
    for name, container in containers(manifests):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            check = container.get(probe, {})
            asked = check.get("httpGet", check.get("tcpSocket"))
            assert asked is None or asked["port"] in ports[name].values(), name


def test_nobody_talks_to_anybody_unless_it_is_said(manifests: list[Manifest]) -> None:
    """One policy forbids everything to all pods; each other rule is for some pods and ports."""
    policies = of_kind(manifests, "NetworkPolicy")
    nobody = policies["nobody"]["spec"]
    assert nobody["podSelector"] == {}
    assert set(nobody["policyTypes"]) == {"Ingress", "Egress"}
    assert not {"ingress", "egress"} & nobody.keys()
    for policy in policies.values():
        assert selected(manifests, policy["spec"]["podSelector"])
    for way, other in (("ingress", "from"), ("egress", "to")):
        for policy, rule in _rules(manifests, way):
            assert rule[other], policy["metadata"]["name"]
            assert rule["ports"], policy["metadata"]["name"]


def test_there_is_no_way_out_that_nobody_named(manifests: list[Manifest]) -> None:
    """Addresses are a few, never the world's or the cloud's metadata; namespaces are named."""
    for policy, rule in _rules(manifests, "egress"):
        for to in rule["to"]:
            name = policy["metadata"]["name"]
            assert to.get("namespaceSelector") != {}, name
            if "ipBlock" in to:
                addresses = ip_network(to["ipBlock"]["cidr"])
                assert addresses.prefixlen >= BROADEST, name
                assert not addresses.supernet_of(METADATA), name


def test_every_port_that_is_opened_is_listened_to(manifests: list[Manifest]) -> None:
    """What may come in comes to a port of each pod that its policy is about, or of one of them."""
    ports = _ports(manifests)
    for policy, rule in _rules(manifests, "ingress"):
        about = selected(manifests, policy["spec"]["podSelector"])
        listening = set().union(*(ports[name] for name in about))
        assert {each["port"] for each in rule["ports"]} <= listening


def test_whom_the_operator_asks_lets_it_in(manifests: list[Manifest]) -> None:
    """``promote`` reaches every replica of search: by a name that has them all, both ways open."""
    (container,) = pods(manifests)["operator"]["spec"]["containers"]
    (url,) = (e["value"] for e in container["env"] if e["name"] == "AUDIOFUSE_SEARCH_URL")
    asked = urlsplit(url)
    service = of_kind(manifests, "Service")[str(asked.hostname)]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"]
    assert selected(manifests, {"matchLabels": service["selector"]}) == {"search"}
    assert ("operator", "search", asked.port) in _inside(manifests, "egress", "to")
    assert ("search", "operator", asked.port) in _inside(manifests, "ingress", "from")


def _inside(manifests: list[Manifest], way: str, other: str) -> set[tuple[str, str, int]]:
    """Return whose policy names which other pod of the namespace, at which port."""
    return {
        (mine, theirs, port["port"])
        for policy, rule in _rules(manifests, way)
        for mine in selected(manifests, policy["spec"]["podSelector"])
        for peer in rule[other]
        if "podSelector" in peer and "namespaceSelector" not in peer
        for theirs in selected(manifests, peer["podSelector"])
        for port in rule["ports"]
    }


def test_dependencies_in_the_cluster_are_reached(manifests: list[Manifest]) -> None:
    """Those that the settings name are: by their namespace's label, which operations.md tells."""
    (settings,) = of_kind(manifests, "ConfigMap").values()
    urls = [urlsplit(settings["data"][name]) for name in SETTINGS_OF_OTHERS]
    policy = of_kind(manifests, "NetworkPolicy")["dependencies"]["spec"]
    (rule,) = policy["egress"]
    assert {each["port"] for each in rule["ports"]} >= {
        6379,
        *(url.port for url in urls if url.port),
    }
    ours = {
        name
        for name, pod in pods(manifests).items()
        if pod["metadata"]["labels"][PART_OF] == "audiofuse"
    }
    assert selected(manifests, policy["podSelector"]) == ours
    (label,) = rule["to"][0]["namespaceSelector"]["matchLabels"]
    assert label in (DEPLOY / "operations.md").read_text()


def test_the_demo_is_whole(tmp_path: Path) -> None:
    """All it depends on is in it, reached and let in, events find their way, and it is small."""
    manifests = parse(build(copied(tmp_path) / "demo"))
    (settings,) = of_kind(manifests, "ConfigMap").values()
    services = of_kind(manifests, "Service")
    for name in SETTINGS_OF_OTHERS:
        url = urlsplit(settings["data"][name])
        assert services[str(url.hostname)]["spec"]["ports"][0]["port"] == url.port
    labels = of_kind(manifests, "Namespace")["audiofuse"]["metadata"]["labels"]
    assert labels["audiofuse.io/dependency"] == labels["audiofuse.io/sends-events"] == "true"
    let_in = _inside(manifests, "ingress", "from")
    assert {
        ("s3", "worker", 8333),
        ("valkey", "intake", 6379),
        ("qdrant", "search", 6333),
    } <= let_in
    assert ("s3", "intake", 7701) in _inside(manifests, "egress", "to")
    requests = [container["resources"]["requests"] for _, container in containers(manifests)]
    assert sum(int(each["cpu"].removesuffix("m")) for each in requests) <= 700
    assert sum(_mebibytes(each["memory"]) for each in requests) <= 5000


def _mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]
