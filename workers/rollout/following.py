"""The operator waits until every worker and query service follows the rollout's document.

Whoever follows a document says so in Redis (``workers/queue/followers.py``). Before a generation is
filled, made live or deleted nobody may still act on the document before.
"""

import time

from audiofuse.core.errors import AudiofuseError
from audiofuse.workers.queue.followers import GONE_S, Followers

# Seconds within which all must follow. It exceeds the time after which one that was killed is taken
# to be gone. Raising it waits longer for one that cannot read the registry.
FOLLOWED_S = 2 * GONE_S
LOOK_S = 0.2  # seconds between two looks


def wait_until_followed(followers: Followers, tag: str | None) -> None:
    """Return once all follow the document with ``tag``; ``AudiofuseError`` names who does not."""
    deadline = time.monotonic() + FOLLOWED_S
    while behind := followers.behind(tag):
        if time.monotonic() > deadline:
            raise AudiofuseError(
                f"the rollout's document is not followed by: {', '.join(behind)}. Can they read "
                "the registry? Their logs say so. Once they follow it, or are stopped, go on with "
                "audiofuse rollout status"
            )
        time.sleep(LOOK_S)
