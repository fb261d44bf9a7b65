"""Rows: what nobody gets: other ports, ways out, secrets."""

import json
import socket
from pathlib import Path

from images import docker
from stack import Stack

PUBLISHED = {8333, 7700, 9090, 3000}
STORAGE_PORTS = (7333, 8080, 8111, 8181, 8888, 9326, 9327, 9333, 18080, 18333, 18888, 19333)
METRICS_PORT, IAM_PORT = 9327, 18333
# Ask storage's metrics for what their own server has beside them: a profile of the process.
ASK_FOR_THE_COMMAND = """
import urllib.request
with urllib.request.urlopen("http://s3:9327/debug/pprof/cmdline", timeout=10) as answer:
    print(answer.read(60).decode())
"""
# Ask storage to take a new identity with all rights, {name, {access key, secret key}, action}.
MAKE_ONESELF_OWNER = """
import grpc
def field(number, value):
    return bytes([number << 3 | 2, len(value)]) + value
keys = field(1, b"intruder") + field(2, b"intruder")
identity = field(1, b"intruder") + field(2, keys) + field(3, b"Admin")
channel = grpc.insecure_channel("s3:18333")
call = channel.unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity", bytes, bytes)
try:
    call(field(1, identity), timeout=10)
    print("taken")
except grpc.RpcError as error:
    print(error.code().name)
"""
# Run in another container's network: what of addresses and names is reached.
REACH = """
import json, socket, sys
def connects(host, port):
    try:
        socket.create_connection((host, int(port)), 4).close()
        return True
    except OSError:
        return False
def resolves(name):
    try:
        return bool(socket.getaddrinfo(name, 80))
    except OSError:
        return False
asked = json.loads(sys.argv[1])
found = [[x, connects(*x)] for x in asked["connect"]]
print(json.dumps(found + [[x, resolves(x)] for x in asked["resolve"]]))
"""


def ports(stack: Stack) -> str:
    """Four are published, on the loopback; storage's is open, and one that tells its metrics."""
    published = {
        (binding["HostIp"], int(binding["HostPort"]))
        for each in stack.running().values()
        for bindings in each["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    }
    assert published == {("127.0.0.1", port) for port in PUBLISHED}, published
    asked = [["s3", port] for port in (8333, *STORAGE_PORTS)]
    found = _reached(stack, "worker-1", connect=asked)
    assert found == [["s3", 8333], ["s3", METRICS_PORT], ["s3", IAM_PORT]], found
    told = stack.compose("exec", "--no-TTY", "worker", "python", "-c", ASK_FOR_THE_COMMAND)
    assert told.startswith("# HELP"), told
    said = stack.compose("exec", "--no-TTY", "worker", "python", "-c", MAKE_ONESELF_OWNER)
    assert said.strip() == "UNAUTHENTICATED", said
    loopback = ", ".join(map(str, sorted(PUBLISHED)))
    return f"127.0.0.1: {loopback}; of s3 8333, 9327 tells metrics only, 18333 refuses"


def ways_out(stack: Stack, outside: str) -> str:
    """No container reaches a name or an address outside that this machine reaches."""
    name, port = outside.rsplit(":", 1)
    address = socket.gethostbyname(name)
    socket.create_connection((address, int(port)), 10).close()  # else nothing is shown
    open_ways = {}
    for container in stack.running():
        found = _reached(stack, container, connect=[[address, port]], resolve=[name])
        if found:
            open_ways[container] = found
    assert not open_ways, open_ways
    return f"{len(stack.running())} containers, none reaches {outside}"


def _reached(stack: Stack, container: str, **asked: list[object]) -> list[object]:
    told = json.dumps({"connect": [], "resolve": []} | asked)
    answer = docker(
        "run", "--rm", "--network", f"container:{stack.project}-{container}", "--entrypoint",
        "python", "audiofuse:cpu", "-c", REACH, told,
    )  # fmt: skip
    return [what for what, reached in json.loads(answer) if reached]


def secrets(stack: Stack) -> str:
    """No secret is in what `docker inspect` shows, nor in any process's environment."""
    hidden = {value: name for name, value in stack.secrets.items()}
    hidden |= {stack.secrets["search_key"]: "search_key"}  # which search_api_keys only names
    shown = []
    for container, each in stack.containers().items():
        places = {"inspect": json.dumps(each)}
        if each["State"]["Running"]:
            # ps of the engine's machine, so this has to run there, and as root
            pids = docker("top", each["Id"], "-o", "pid").split()[1:]
            places |= {f"process {pid}": _environ(pid) for pid in pids}
        shown += [
            f"{container}: {name} in {place}"
            for place, text in places.items()
            for value, name in hidden.items()
            if value in text
        ]
    assert not shown, f"{len(shown)}, such as {'; '.join(shown[:4])}"
    return f"{len(hidden)} secrets, none shown by {len(stack.containers())} containers"


def _environ(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # a health check's, which has ended
        return ""
