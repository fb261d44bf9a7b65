"""Questions of many threads made one call: how many fit into one."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from audiofuse.core.batcher import Batcher


def test_questions_share_a_call_while_their_sizes_fit() -> None:
    """What waits is taken in its order up to the bound; what exceeds it alone is asked alone."""
    calls: list[list[int]] = []
    first, go_on = threading.Event(), threading.Event()

    def call(questions: list[int]) -> list[int]:
        calls.append(questions)
        first.set()
        assert go_on.wait(60)
        return questions

    batcher = Batcher[int, int](call, 10, size=lambda question: question)
    sizes = [4, 6, 1, 25, 10, 3]
    with ThreadPoolExecutor(len(sizes) + 1) as threads:
        leader = threads.submit(batcher, 0)
        assert first.wait(60)
        asked = []
        for number, size in enumerate(sizes):
            asked.append(threads.submit(batcher, size))
            while len(batcher._waiting) <= number:
                time.sleep(0.001)
        go_on.set()
        assert [each.result() for each in asked] == sizes
        assert leader.result() == 0
    assert calls == [[0], [4, 6], [1], [25], [10], [3]]
