"""Which windows make the next batch, and when it begins: pure policy, without lock, clock, encoder.

A batch is bounded by seconds of audio, and its windows have one padded length; whose they are does
not matter. It begins when it is full, when its oldest window has waited long enough, or when
nothing more is coming. Live windows go first; every so many batches it is backfill's turn.
"""

from collections import Counter, deque
from collections.abc import Sequence

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_S
from audiofuse.core.encoder.runtime import size_within
from audiofuse.workers.indexing.device.waiting import Window
from audiofuse.workers.queue.lanes import BACKFILL_TURN
from audiofuse.workers.telemetry.names import Lane

# Seconds that a window waits for company. Longer: fuller batches; shorter: quicker answers.
PATIENCE_S = {Lane.LIVE: 0.05, Lane.BACKFILL: 0.5}
# It also waits as long as so many batches take: under load those that are full go first.
PATIENCE_BATCHES = 2
# Of the batch's bound: after memory did not suffice, and after each time that it did.
SHRINK, GROW = 0.75, 1.02


class Batches:
    """Windows that wait, and the choice among them. Times are seconds on any one clock."""

    def __init__(self, batch_s: float, *, few_shapes: bool = False) -> None:
        """Bound a batch to ``batch_s`` seconds of audio, padding included.

        With ``few_shapes`` one that is full has a size that an encoder does not pad.
        """
        self.bound_s = batch_s
        self._few_shapes = few_shapes
        self.begun = 0  # batches that were chosen
        self._most_s = batch_s
        self._last_s = 0.0  # what the last batch took
        self._windows: dict[Lane, deque[Window]] = {lane: deque() for lane in Lane}
        self._waiting_samples = Counter[int]()  # by padded length

    def __len__(self) -> int:
        """Return how many windows wait."""
        return sum(map(len, self._windows.values()))

    def add(self, window: Window) -> None:
        """Let a window wait for its batch."""
        self._windows[window.lane].append(window)
        self._waiting_samples[window.length] += window.length

    def choose(self, now: float, *, nothing_more_comes: bool) -> list[Window]:
        """Take the windows of the next batch; none while it is worth waiting for more.

        ``nothing_more_comes`` says that all who could bring a window wait for an answer.
        """
        lanes = self._lanes()
        heads = [self._windows[lane][0] for lane in lanes if self._windows[lane]]
        length = self._length_to_begin(heads, now, nothing_more_comes=nothing_more_comes)
        if length is None:
            return []
        self.begun += 1
        return self._take(length, lanes)

    def clear(self) -> list[Window]:
        """Take all windows that wait, of whatever length."""
        windows = [window for queue in self._windows.values() for window in queue]
        for queue in self._windows.values():
            queue.clear()
        self._waiting_samples.clear()
        return windows

    def patience_left_s(self, now: float) -> float | None:
        """Return in how many seconds a window's patience ends; ``None`` if no window waits."""
        heads = [queue[0] for queue in self._windows.values() if queue]
        return max(0.0, min(self._left_s(head, now) for head in heads)) if heads else None

    def room(self, length: int) -> int:
        """Return how many windows of ``length`` samples make a full batch; at least 1."""
        room = max(1, int(self.bound_s * SAMPLE_RATE // length))
        return size_within(room) if self._few_shapes else room

    def took(self, seconds: float) -> None:
        """Note how long the last batch took."""
        self._last_s = seconds

    def grow(self) -> None:
        """Make batches a little larger, up to what they were bounded to at first."""
        self.bound_s = min(self._most_s, self.bound_s * GROW)

    def shrink(self) -> None:
        """Make batches smaller, but never smaller than one window."""
        self.bound_s = max(WINDOW_S, self.bound_s * SHRINK)

    def _lanes(self) -> list[Lane]:
        """Return the lanes in the order in which they fill the next batch."""
        backfills_turn = (self.begun + 1) % BACKFILL_TURN == 0
        return [Lane.BACKFILL, Lane.LIVE] if backfills_turn else [Lane.LIVE, Lane.BACKFILL]

    def _length_to_begin(
        self, heads: Sequence[Window], now: float, *, nothing_more_comes: bool
    ) -> int | None:
        """Return the padded length of the batch that is to begin now, if one is.

        ``heads`` are the oldest windows of each lane, in the lanes' order.
        """
        if not heads:
            return None
        if self._lanes()[0] is heads[0].lane is Lane.BACKFILL:  # its turn, full or not
            return heads[0].length
        for head in heads:
            if self._left_s(head, now) <= 0:
                return head.length
        for length, samples in self._waiting_samples.items():
            if samples >= self.room(length) * length:
                return length
        return heads[0].length if nothing_more_comes else None

    def _left_s(self, window: Window, now: float) -> float:
        return window.since + max(PATIENCE_S[window.lane], PATIENCE_BATCHES * self._last_s) - now

    def _take(self, length: int, lanes: Sequence[Lane]) -> list[Window]:
        """Take a batch of windows of one padded length, the lanes in their order."""
        room = self.room(length)
        taken: list[Window] = []
        for lane in lanes:
            kept: deque[Window] = deque()
            for window in self._windows[lane]:
                fits = window.length == length and len(taken) < room
                (taken if fits else kept).append(window)
            self._windows[lane] = kept
        self._waiting_samples[length] -= len(taken) * length
        return taken
