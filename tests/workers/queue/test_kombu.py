"""What the transport overrides of kombu: held against the release for which it was written."""

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from kombu.transport.redis import Channel, MultiChannelPoller, QoS

from audiofuse.workers.queue import transport

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
    Channel._brpop_start: "06723d707ddf2240",
    Channel._brpop_read: "c42518699709f2df",
    Channel._flush_brpop_reauth: "bb4930b4fd3cf8f3",
    Channel._q_for_pri: "f3997660680dd00f",
    Channel._do_restore_message: "8b430df94e45b5b0",
    Channel._restore: "92e63e38835b6592",
    Channel.close: "101e9b9cdad44b88",
    MultiChannelPoller.on_poll_start: "414f76caaa675bc0",
    MultiChannelPoller._register_BRPOP: "85724582464a615f",
    MultiChannelPoller.on_readable: "c0d99f241607f845",
}
"""Each method of kombu that is overridden, or that an override repeats or leans on, with the hash
of its source in kombu 5.7.0."""


@pytest.mark.parametrize("method", WRITTEN_FOR, ids=lambda method: method.__qualname__)
def test_kombu_is_what_the_transport_was_written_for(method: Callable[..., Any]) -> None:
    """An upgrade that changes what is overridden fails here, before it loses a message."""
    source = inspect.getsource(method).encode()
    assert hashlib.sha256(source).hexdigest()[:16] == WRITTEN_FOR[method], (
        f"kombu changed {method.__qualname__}: read what is new in it, bring workers/queue/"
        "transport.py (and pop.lua) into line, then record the new hash here"
    )


@pytest.mark.parametrize(("ours", "theirs"), [(transport.QoS, QoS), (transport.Channel, Channel)])
def test_whatever_is_overridden_is_watched(ours: type, theirs: type) -> None:
    """No method of kombu is replaced without its hash."""
    overridden = {
        name
        for name, value in vars(ours).items()
        if inspect.isfunction(value) and hasattr(theirs, name)
    }
    watched = {
        method.__name__
        for method in WRITTEN_FOR
        if method.__qualname__.startswith(theirs.__name__ + ".")
    }
    assert overridden - {"__init__", "_deliver"} <= watched
