"""Shared by the apps of the findings: their settings, and a journal for the test.

A test gives the settings in environment variables and reads the journal, one JSON object a line.
"""

import json
import os
import time

import faust
from faust.types import EventT, TopicT

BROKERS = "FINDING_BROKERS"
GROUP = "FINDING_GROUP"
TOPIC = "FINDING_TOPIC"
JOURNAL = "FINDING_JOURNAL"
DATA = "FINDING_DATA"


def stock_app(*, stream_wait_empty: bool = True) -> faust.App:
    """A Faust app with stock behaviour, quick to commit and to notice a dead member."""
    return faust.App(
        os.environ[GROUP],
        broker=[f"kafka://{server}" for server in os.environ[BROKERS].split(",")],
        datadir=os.environ[DATA],
        broker_commit_interval=0.1,
        broker_session_timeout=6,
        broker_heartbeat_interval=1,
        broker_rebalance_timeout=20,
        broker_request_timeout=20,
        stream_wait_empty=stream_wait_empty,
        topic_replication_factor=3,
    )


def raw_topic(app: faust.App) -> TopicT:
    """The test's topic, as bytes."""
    return app.topic(
        os.environ[TOPIC], key_serializer="raw", value_serializer="raw", value_type=bytes
    )


def note(what: str, event: EventT[bytes] | None = None) -> None:
    """Append to the journal, with the record's partition, offset and key if given.

    One write to a file opened for appending: a SIGKILL leaves whole lines, and a note before an
    ack is never lost if the ack is not.
    """
    line: dict[str, object] = {"what": what, "at": time.monotonic_ns()}
    if event is not None:
        key = event.message.key
        line["partition"] = event.message.partition
        line["offset"] = event.message.offset
        line["key"] = key.decode() if isinstance(key, bytes) else None
    journal = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(journal, json.dumps(line).encode() + b"\n")
    finally:
        os.close(journal)
