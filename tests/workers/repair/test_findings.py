"""The record of the last comparison."""

from dataclasses import replace

from redis import Redis

from audiofuse.workers.repair.findings import Finding, LastRun, Run


def test_the_last_run_is_kept_for_each_bucket(redis: Redis) -> None:
    """Whoever asks learns when a bucket was last compared, how long that took, and the findings."""
    found = dict.fromkeys(Finding, 0) | {"missing": 3}
    run = Run(at=1000.5, seconds=2.5, found=found)
    assert LastRun(redis, "sounds").read() is None
    LastRun(redis, "sounds").write(run)
    assert LastRun(redis, "sounds").read() == replace(run, in_a_row=1)
    LastRun(redis, "sounds").write(run)
    assert LastRun(redis, "sounds").read() == replace(run, in_a_row=2)
    assert LastRun(redis, "other").read() is None
