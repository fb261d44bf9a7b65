"""The archive teaches its encoder, with everything killed on the way: ``make proof-learning``.

Tones of six kinds are uploaded, whose names say nothing to a random encoder. A listener asks for
them and says what fits, while the query service is killed. ``audiofuse-train improve --rollout`` is
killed inside and between all of its steps; the same command ends what was begun, as if it had not
been, with one version. That goes live through all gates, its command and a worker killed, too.
Clients ask without a pause. Everything is real:
Valkey, S3 and SQS over HTTP, workers, service, embedded Qdrant.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from deployment import BUCKET, until
from rich.console import Console
from rich.table import Table
from rollout import Play, Proof, Traffic
from stage import wave_file

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.evaluation.scorecards import MAP, compared, open_scorecards
from audiofuse.core.feedback.book import open_book
from audiofuse.core.feedback.verdicts import standing
from audiofuse.core.items import point_id
from audiofuse.core.model.config import TINY

KINDS = ("owl", "bell", "rain", "motor", "horn", "surf")
WORDINGS = ("{0} {0}", "my {0}", "{0} at 5", "{0} far", "an old {0}", "{0} i made", "{0} 77")
SOUNDS, UNSEEN = 15, 4  # of each kind: in the bucket, and in the manifest of the gate
FITS = MISSES = 2  # verdicts on a question
FIT, MISS, TAKEN_BACK = "fits", "misses", "withdrawn"
IMPROVE = [sys.executable, "-m", "audiofuse.trainer", "improve", "--rollout"]
IMPROVE_S = 600
LEARNING, LEARNING_S = "learning", 1.0
KILLED = -signal.SIGKILL
STEPS = {  # where improve is killed: by which step, and how it ends
    "while it learns": (LEARNING, KILLED),
    "among the files that it publishes": ("upload 3", KILLED),
    "as soon as it has published": ("_publish_manifest 1", KILLED),
    "between both scorecards": ("add 1", KILLED),
    "before its rollout starts": ("add 2", KILLED),
    "as its rollout is written down": ("write 1", 1),  # the command that it gives is killed
    "while its rollout is filled": ("sync 5", 1),
    "nowhere": ("", 0),
}

console = Console(width=120)
Said = dict[str, list[dict[str, str]]]  # verdicts by question


class Learning(Proof):
    """The rollout's deployment, which keeps verdicts; other words are other texts to it."""

    shape = TINY.model_copy(
        update={
            "dim": 40,
            "text": TINY.text.model_copy(
                update={
                    "bert": TINY.text.bert | {"hidden_size": 48, "intermediate_size": 48},
                    "pooling": "mean",
                }
            ),
        }
    )

    def _s3(self) -> dict[str, Any]:
        return super()._s3() | {"feedback": True, "gate_queries": self.root / "unseen.jsonl"}

    def upload(self) -> None:
        """Put all tones and their sidecars into the bucket."""
        for key, kind, number in _tones(0, SOUNDS):
            sidecar = {"title": str(number), "keywords": [kind]}
            for name, body in ((key, tone(kind, number)), (f"{key}.json", json.dumps(sidecar))):
                self.s3.put_object(Bucket=BUCKET, Key=name, Body=body)

    def write_unseen(self) -> None:
        """Write tones that are never uploaded, with questions: the quality gate judges by them."""
        rows = []
        for key, kind, number in _tones(SOUNDS, SOUNDS + UNSEEN):
            (self.root / key).write_bytes(tone(kind, number))
            asked = {"text": WORDINGS[number % len(WORDINGS)].format(kind), "kind": ""}
            rows.append({"audio": key, "split": "val", "title": str(number), "queries": [asked]})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.root / "unseen.jsonl").write_text(lines)

    def improve(self, step: str = "") -> int:
        """Run the command until it ends, or is killed, at a ``step`` or while it learns.

        Return its exit code.
        """
        fault = {}
        if step not in {"", LEARNING}:
            self.order("improve", step)
            fault = self._faulty("improve", "killed")
        path = self.root / "improve.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                IMPROVE, env=self._variables("improve") | fault, stdout=log, stderr=log
            )
        if step == LEARNING:
            until(lambda: "verdicts on" in path.read_text(), "learning to begin")
            time.sleep(LEARNING_S)
            process.kill()
        return process.wait(IMPROVE_S)


def _tones(first: int, last: int) -> Iterator[tuple[str, str, int]]:
    for kind in KINDS:
        for number in range(first, last):
            yield f"{kind}-{number}.wav", kind, number


def tone(kind: str, number: int) -> bytes:
    """Return a second of a tone as a WAV file: kinds differ by pitch, overtones, beat and noise."""
    place = KINDS.index(kind)
    chance = np.random.default_rng([place, number])
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pitch_hz = 110 * 2 ** (0.9 * place) * chance.uniform(0.97, 1.03)
    overtones = sum(np.sin(2 * np.pi * pitch_hz * n * seconds) / n for n in range(1, place + 2))
    beat = 1 + np.sin(2 * np.pi * (1 + 3 * place) * seconds + chance.uniform(0, 6))
    noise = 0.1 * (place + 1) * chance.normal(size=seconds.size)
    return wave_file(np.asarray(overtones * beat + noise, np.float32))


def listen(chance: random.Random) -> Said:
    """Return what a listener says: of each question two sounds fit and two do not.

    He errs once, and takes that back.
    """
    said: Said = {}

    def verdict(kind: str, opinion: str) -> dict[str, str]:
        key = f"{kind}-{chance.randrange(SOUNDS)}.wav"
        return {"item": str(point_id(BUCKET, key)), "opinion": opinion}

    for kind in KINDS:
        others = [other for other in KINDS if other != kind]
        for wording in WORDINGS:
            said[wording.format(kind)] = [
                *(verdict(kind, FIT) for _ in range(FITS)),
                *(verdict(chance.choice(others), MISS) for _ in range(MISSES)),
            ]
    error = verdict(KINDS[1], FIT)
    said[f"my {KINDS[0]}"] += [error, error | {"opinion": TAKEN_BACK}]
    return said


def tell(proof: Proof, said: Said) -> None:
    """Give all verdicts, from the first again when the service is killed in between."""

    def give() -> bool:
        for number, (question, verdicts) in enumerate(said.items()):
            if number == len(said) // 2 and not killed:
                proof.kill("search")
                proof.start("search")
                killed.append(True)
            body = {"q": question, "verdicts": verdicts}
            url = f"{proof.settings.search_url}/v1/feedback"
            httpx.post(url, json=body, timeout=10).raise_for_status()
        return True

    killed: list[bool] = []
    until(give, "verdicts to be kept")


def improve(proof: Learning) -> dict[str, str]:
    """Run the command until it ends, killed at each of its steps; return how it ended each time."""
    ends = {}
    for where, (step, expected) in STEPS.items():
        code = proof.improve(step)
        log = (proof.root / "improve.log").read_text()
        assert code == expected, f"improve, killed {where}, ended with {code}: {log[-3000:]}"
        ends[where] = f"ended with {code}"
    versions = set(open_registry(proof.settings).versions()) - {proof.settings.encoder.name}
    assert len(versions) == 1, f"kills have left other versions behind: {versions}"
    return ends


def main() -> int:
    """Play and report; the exit code says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    chance = random.Random(parser.parse_args().seed)
    with tempfile.TemporaryDirectory(prefix="audiofuse-") as folder:
        proof = Learning(Path(folder, "learning"), s3=True)
        try:
            return _main(proof, chance)
        finally:
            proof.stop()


def _main(proof: Learning, chance: random.Random) -> int:
    open_registry(proof.settings).publish(proof.settings.encoder)
    proof.write_unseen()
    proof.start("search")
    proof.upload()
    count = SOUNDS * len(KINDS)
    until(lambda: proof.index.count(proof.index.live()) == count and proof.idle(), "sounds", 600)
    said = listen(chance)
    tell(proof, said)
    traffic = Traffic(proof, 0, [], chance)
    until(lambda: ask(proof).is_success, "the service")
    with traffic.running(changing=False):
        ends = improve(proof)
        promote(proof, traffic)
    return 0 if report(proof, said, traffic, ends) else 1


def ask(proof: Proof) -> httpx.Response:
    """Ask the service."""
    return httpx.get(f"{proof.settings.search_url}/v1/search", params={"q": "an owl"})


def promote(proof: Proof, traffic: Traffic) -> None:
    """Have the new version go live, and the old one go."""
    rollout, _ = open_registry(proof.settings).rollout()
    assert rollout
    new, registry = rollout.other, open_registry(proof.settings)

    def is_live() -> bool:
        live, document = proof.index.live(), registry.rollout()[0]
        return live is not None and document is not None and live.version == document.live == new

    steps = Play(proof, traffic, kill=True)
    steps.step("promote", is_live, "promote")
    steps.step("drop", lambda: len(proof.index.generations()) == 1, "drop")


def report(proof: Proof, said: Said, traffic: Traffic, ends: dict[str, str]) -> bool:
    """Print what happened; return whether all is well."""
    registry, cards = open_registry(proof.settings), open_scorecards(proof.settings)
    rollout, _ = registry.rollout()
    assert rollout
    scores = compared(cards.of(version) for version in registry.versions())
    holding = standing(open_book(proof.settings).read())
    expected = {(q, each["item"]): each["opinion"] for q, own in said.items() for each in own}
    kept = {(each.text, each.item): str(each.opinion) for each in holding}
    wrong = {pair for pair, opinion in expected.items() if opinion != TAKEN_BACK} ^ kept.keys()
    facts = {
        **{f"improve, {name}": end for name, end in ends.items()},
        "live at the end": rollout.live,
        "verdicts that hold": f"{len(holding)}, {len(wrong)} wrong",
        "answers by version": traffic.answers,
        "failed queries": len(traffic.failures),
        "answers that mix versions": len(traffic.mixed),
        **{
            f"{version}, {system}": f"mAP@10 {metrics[MAP].value:.3f}"
            for version, score in scores.items()
            for system, metrics in score.figures.items()
        },
    }
    table = Table("what", "figure", box=None)
    for name, fact in facts.items():
        table.add_row(name, str(fact))
    console.print(table)
    for line in (*traffic.failures[:5], *traffic.mixed[:5]):
        console.print(line)
    improved = rollout.live.startswith("improved-") and len(scores) == len(registry.versions())
    return improved and not (wrong or traffic.failures or traffic.mixed)


if __name__ == "__main__":
    sys.exit(main())
