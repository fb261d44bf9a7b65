"""What is overridden of kombu and Celery: held against the releases for which it was written."""

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from celery.app.trace import build_tracer, fast_trace_task
from celery.concurrency.base import BasePool, apply_target
from celery.concurrency.thread import TaskPool
from celery.worker import loops, strategy
from celery.worker.components import Pool as PoolStep
from celery.worker.consumer import Consumer
from celery.worker.request import Request, create_request_cls
from kombu.transport.redis import Channel, MultiChannelPoller, QoS

from audiofuse.workers.queue import consumer, pool, transport

WRITTEN_FOR: dict[Callable[..., Any], str] = {
    QoS.append: "35c655f6ecc62fe6",
    QoS.restore_unacked: "8954efef014d546e",
    QoS.restore_visible: "d4a4a40a3eaf9f23",
    QoS.restore_by_tag: "58e161d81b6fe18d",
    QoS.ack: "1bc15a4ddf541af6",
    QoS.reject: "747a02434344d1a6",
    QoS._remove_from_indices: "980a109d54ad9136",
    QoS.pipe_or_acquire: "ad7f549d96c81107",
    Channel.__init__: "f189bdebe2436ccd",
    Channel._create_client: "dae92bc4075dafb9",
    Channel.conn_or_acquire: "25883caca6c4121e",
    Channel._brpop_start: "06723d707ddf2240",
    Channel._brpop_read: "c42518699709f2df",
    Channel._flush_brpop_reauth: "bb4930b4fd3cf8f3",
    Channel._q_for_pri: "f3997660680dd00f",
    Channel._do_restore_message: "8b430df94e45b5b0",
    Channel._restore: "92e63e38835b6592",
    Channel.close: "101e9b9cdad44b88",
    Channel._receive: "b215b6226f2f285c",
    Channel._receive_one: "d59b8751d89757dc",
    MultiChannelPoller.on_poll_start: "414f76caaa675bc0",
    MultiChannelPoller._register_BRPOP: "85724582464a615f",
    MultiChannelPoller.on_readable: "c0d99f241607f845",
}
"""Each method of kombu that is overridden, or that an override repeats or leans on, with the hash
of its source in kombu 5.7.0."""
CELERY: dict[Callable[..., Any], str] = {
    Consumer.create_task_handler: "292c5a681f10ade7",
    Consumer.call_soon_ack: "39f8579d076243fc",
    Consumer.on_connection_error_after_connected: "4f84dbfff329d28f",
    Consumer.on_close: "e96d425dce0ae6a3",
    Consumer.reset_rate_limits: "757b0c8da6e8caab",
    Consumer._limit_task: "e170f217b160aab0",
    Consumer._schedule_bucket_request: "3437673ea83eb2e6",
    Consumer.add_task_queue: "7df62325255c6371",
    BasePool.__init__: "7fe610a8c132e84c",
    BasePool.apply_async: "4db4ca91db58d9fb",
    BasePool._get_info: "bc60446d2fc9b4fb",
    BasePool.terminate_job: "86cf042a4a30ed8e",
    PoolStep.create: "1f0dba9f45f3ef37",
    TaskPool.on_apply: "5b5ead7fb32e4e6d",
    apply_target: "587f70580295464c",
    Request.on_accepted: "7bd097a863da039e",
    Request.on_failure: "21736ec661cd60d7",
    Request.revoked: "5132788b1bc86f26",
    Request._announce_revoked: "a34ab36ca94d4d63",
    create_request_cls: "871f30fe1cfee4bf",
    strategy.default: "7d90575ada5eb1dc",
    loops.asynloop: "05a53e51998887ca",
    fast_trace_task: "52c76aab90e1656f",
    build_tracer: "b2945aec38e1872e",
}
"""The same of Celery 5.7.0: what ``consumer.py``, ``pool.py`` and ``indexing/app.py`` lean on. What
a pool has to do is in ``TaskPool``, ``apply_target`` and ``create_request_cls``."""


def _hash(method: Callable[..., Any]) -> str:
    return hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:16]


@pytest.mark.parametrize("method", WRITTEN_FOR, ids=lambda method: method.__qualname__)
def test_kombu_is_what_the_transport_was_written_for(method: Callable[..., Any]) -> None:
    """An upgrade that changes what is overridden fails here, before it loses a message."""
    assert _hash(method) == WRITTEN_FOR[method], (
        f"kombu changed {method.__qualname__}: read what is new in it, bring workers/queue/"
        "transport.py (and pop.lua) into line, then record the new hash here"
    )


@pytest.mark.parametrize("method", CELERY, ids=lambda method: method.__qualname__)
def test_celery_is_what_consumer_and_pool_were_written_for(method: Callable[..., Any]) -> None:
    """An upgrade that calls pool, consumer or requests in another way fails here."""
    assert _hash(method) == CELERY[method], (
        f"Celery changed {method.__qualname__}: read what is new in it, bring workers/queue/"
        "consumer.py, pool.py and workers/indexing/app.py into line, then record the new hash here"
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (transport.QoS, QoS),
        (transport.Channel, Channel),
        (consumer.Consumer, Consumer),
        (pool.Pool, BasePool),
    ],
)
def test_whatever_is_overridden_is_watched(ours: type, theirs: type) -> None:
    """No method is replaced without the hash of the one that it replaces."""
    overridden = {
        name
        for name, value in vars(ours).items()
        if inspect.isfunction(value) and hasattr(theirs, name)
    }
    watched = {
        method.__name__
        for method in WRITTEN_FOR | CELERY
        if method.__qualname__.startswith(theirs.__name__ + ".")
    }
    assert overridden - {"__init__", "_deliver", "on_apply"} <= watched
