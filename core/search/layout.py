"""Places on a plane on which vectors that are alike lie together.

Run as a program it is a process apart, which lays out what it reads: t-SNE takes 6 s of a core for
5,000 vectors, during which questions are answered as before.
"""

import io
import os
import subprocess
import sys

import numpy as np

from audiofuse.core.children import end_with
from audiofuse.core.cores import thread_limits
from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.errors import Unavailable

MODULE = "audiofuse.core.search.layout"
# Dimensions that are compared. Higher: finer differences count; lower: less to compute.
COMPARED = 50
# Vectors that each one is laid out beside. Higher: more of the whole order, less of small groups.
PERPLEXITY = 20
# Steps of t-SNE, of which 250 only part the groups. Higher: groups are rounder, later.
STEPS = 350
# How much of what is far away t-SNE takes together. Higher: less to compute, places less exact.
ANGLE = 0.8
FEWEST = 8  # of which there is an order that two directions do not show
LAYOUT_S = 300  # after so long it is given up
NICENESS = 10


def principal(vectors: Floats, dimensions: int) -> Floats:
    """Return vectors ``(n, dim)`` in the ``dimensions`` directions in which they differ most."""
    if not len(vectors):
        return vectors[:, :dimensions]
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # the widest are last
    places: Floats = centred @ directions[:, ::-1][:, :dimensions]
    return places


def spread(places: Floats) -> Floats:
    """Return places ``(n, 2)`` within -1 and 1, the same in both directions."""
    if not len(places):
        return places
    least, most = places.min(axis=0), places.max(axis=0)
    half = float((most - least).max()) / 2
    within: Floats = (places - (least + most) / 2) / (half or 1.0)  # all may be in one place
    return within


def laid_out(vectors: Floats) -> Floats:
    """Return places ``(n, 2)`` on which neighbours among vectors ``(n, dim)`` are neighbours.

    A process apart computes them. Raises ``Unavailable`` if it fails or takes too long.
    """
    if len(vectors) < FEWEST:
        return principal(vectors, 2)
    command = [sys.executable, "-m", MODULE, str(os.getpid())]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command, input=_bytes(principal(vectors, COMPARED)), capture_output=True,
            timeout=LAYOUT_S, check=False, env=os.environ | thread_limits(1),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the map cannot be laid out: {error}") from error
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(f"the map cannot be laid out: {told or done.returncode}")
    return _array(done.stdout)


def neighbours(vectors: Floats) -> Floats:
    """Return places ``(n, 2)`` by t-SNE, which begins with the first two dimensions."""
    from sklearn.manifold import TSNE  # noqa: PLC0415 - in the process apart only

    begin = vectors[:, :2] / (float(vectors[:, 0].std()) or 1.0) * 1e-4  # all may be the same
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    model = TSNE(
        init=begin, perplexity=perplexity, max_iter=STEPS, angle=ANGLE, random_state=0, n_jobs=1
    )  # fmt: skip
    places: Floats = model.fit_transform(vectors)
    return places


def _bytes(array: Floats) -> bytes:
    content = io.BytesIO()
    np.save(content, array.astype(np.float32), allow_pickle=False)
    return content.getvalue()


def _array(content: bytes) -> Floats:
    array: Floats = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def main() -> None:
    """Lay out the vectors that come by the standard input; ends with the process named."""
    end_with(int(sys.argv[1]))
    os.nice(NICENESS)
    sys.stdout.buffer.write(_bytes(neighbours(_array(sys.stdin.buffer.read()))))


if __name__ == "__main__":
    main()
