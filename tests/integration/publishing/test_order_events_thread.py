"""A process that never exits ``order_events_thread``, such as a WSGI server's, can end."""

import asyncio
import subprocess
import sys
from pathlib import Path

from order_relay.fallback.store import Status
from tests.support.child import on_leash
from tests.support.publish_orders import make_orders, statuses
from tests.support.publish_ways import read_topic

ROOT = Path(__file__).parents[3]
END_SECONDS = 60.0
SERVICE = """
import contextlib
import sys

import sqlalchemy as sa
from sqlalchemy import orm

from order_relay.publishing import order_events_thread
from order_relay.settings import load_settings
from tests.support.publish_orders import Order
from tests.support.publish_ways import paid

path, topic, servers = sys.argv[1:]
settings = load_settings(
    database_url=f"sqlite:///{path}", order_paid_topic=topic, kafka_bootstrap_servers=servers
)
events = contextlib.ExitStack().enter_context(order_events_thread(settings, grace_seconds=30))
engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
with orm.Session(engine) as session:
    session.add(Order(1))
    events.outbox.add(session, paid(1), event_id="outbox")
    events.after_commit.publish(session, paid(2), event_id="after-commit")
    session.commit()
"""
FORK = """
import os
import sys

from order_relay.publishing import order_events_thread
from order_relay.settings import load_settings

settings = load_settings(
    database_url=f"sqlite:///{sys.argv[1]}", kafka_bootstrap_servers=sys.argv[2]
)
with order_events_thread(settings, grace_seconds=0.1):
    child = os.fork()
    if not child:
        sys.exit(7)
    _, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


async def test_a_fork_may_leave_it(cluster: str, tmp_path: Path) -> None:
    """A fork has no thread to close, and ends."""
    process = await asyncio.create_subprocess_exec(
        *on_leash(sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path / "relay.db"), cluster),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    assert await asyncio.wait_for(process.wait(), END_SECONDS) == 7


async def test_a_process_that_never_closes_it_ends_and_loses_nothing(
    cluster: str, topic: str, sqlite_url: str
) -> None:
    """The interpreter's exit closes it: both events are published, and the process ends."""
    engine = await make_orders(sqlite_url)
    path = str(engine.url.database)
    process = await asyncio.create_subprocess_exec(
        *on_leash(sys.executable, "-c", SERVICE, path, topic, cluster),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), END_SECONDS)
    assert (process.returncode, output) == (0, b"")
    records = await asyncio.to_thread(read_topic, cluster, topic)
    assert sorted(record.event_id for record in records) == ["after-commit", "outbox"]
    assert await statuses(engine) == [Status.PUBLISHED]
    await engine.dispose()
