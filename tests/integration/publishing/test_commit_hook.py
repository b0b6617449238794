"""Callbacks of a session run after its commit, and never after a rollback, at any nesting."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from order_relay.publishing.commit_hook import AnySession, when_committed
from tests.support.publish_orders import Order, metadata, orders


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """SQLite, with transactions and savepoints like other databases."""
    made = sa.create_engine(f"sqlite:///{tmp_path}/orders.db")

    def connected(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
        connection.isolation_level = None

    sa.event.listen(made, "connect", connected)
    sa.event.listen(made, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    metadata.create_all(made)
    yield made
    made.dispose()


class Diary:
    """Lists what was committed and what was dropped."""

    def __init__(self) -> None:
        self.committed: list[int] = []
        self.dropped: list[int] = []

    def ask(self, session: AnySession, number: int) -> None:
        """Register callbacks for the session's transaction."""
        when_committed(
            session, lambda: self.committed.append(number), lambda: self.dropped.append(number)
        )


def failed_flush(session: orm.Session) -> None:
    """Break a constraint in the flush of a commit."""
    session.add(Order(2, "same"))
    with pytest.raises(sa.exc.IntegrityError):
        session.commit()
    session.rollback()


def error_in_a_block(session: orm.Session) -> None:
    """Leave a ``with`` block by an exception."""
    with pytest.raises(ZeroDivisionError), session:
        raise ZeroDivisionError


def expunged(session: orm.Session) -> None:
    """Close it without its rows."""
    session.expunge_all()
    session.close()


@pytest.mark.parametrize(
    "end",
    [
        orm.Session.rollback, orm.Session.close, orm.Session.reset, error_in_a_block, failed_flush,
        expunged,
    ],
)  # fmt: skip
def test_never_without_a_commit(engine: sa.Engine, end: Callable[[orm.Session], None]) -> None:
    """After a rollback, a close, an exception or a failed flush, only "dropped" is called."""
    diary = Diary()
    session = orm.Session(engine)
    diary.ask(session, 1)
    session.add(Order(1, "same"))
    end(session)
    assert (diary.committed, diary.dropped) == ([], [1])
    session.commit()
    session.close()
    assert (diary.committed, diary.dropped) == ([], [1])


def test_a_commit_that_the_database_refuses(engine: sa.Engine) -> None:
    """A failed commit counts as dropped."""
    diary = Diary()

    def refuse(connection: sa.Connection) -> None:
        raise RuntimeError("disk full")

    with orm.Session(engine) as session:
        diary.ask(session, 1)
        session.add(Order(1))
        session.flush()
        sa.event.listen(engine, "commit", refuse)
        with pytest.raises(RuntimeError, match="disk full"):
            session.commit()
        sa.event.remove(engine, "commit", refuse)
    assert (diary.committed, diary.dropped) == ([], [1])


STEPS = st.lists(
    st.sampled_from("pay pay pay flush savepoint release undo commit rollback close".split()),
    max_size=40,
)


@given(steps=STEPS)
# Released is not committed: an outer rollback undoes released savepoints.
@example(steps=["savepoint", "savepoint", "pay", "release", "release", "rollback"])
@example(steps=["pay", "pay", "pay", "flush", "commit", "pay", "commit"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exactly_the_rows_in_the_database_are_reported(engine: sa.Engine, steps: list[str]) -> None:
    """For any nesting: once each, after the commit, in the order in which they were registered."""
    diary = Diary()
    with engine.begin() as connection:
        connection.execute(orders.delete())
    session = orm.Session(engine)
    savepoints: list[orm.SessionTransaction] = []
    paid = 0
    for step in [*steps, "close"]:
        match step:
            case "pay":
                paid += 1
                diary.ask(session, paid)
                session.add(Order(paid))
            case "savepoint":
                savepoints.append(session.begin_nested())
            case "release" if savepoints:
                savepoints.pop().commit()
            case "undo" if savepoints:
                savepoints.pop().rollback()
            case "flush":
                before = list(diary.committed)
                session.flush()
                assert diary.committed == before
            case "commit" | "rollback" | "close":
                getattr(session, step)()
                savepoints.clear()
    with engine.connect() as connection:
        rows = list(connection.scalars(sa.select(orders.c.id).order_by(orders.c.id)))
    assert diary.committed == rows
    assert sorted(diary.committed + diary.dropped) == list(range(1, paid + 1))


def test_a_session_inside_a_transaction_of_its_connection(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit that the connection can still roll back counts as dropped, and is logged."""
    diary = Diary()
    with engine.connect() as connection, connection.begin() as outer:
        with orm.Session(connection) as session:
            diary.ask(session, 1)
            session.commit()
        outer.rollback()
    assert (diary.committed, diary.dropped) == ([], [1])
    assert "Not published" in caplog.text
    with engine.connect() as connection, orm.Session(connection) as session:
        diary.ask(session, 2)
        session.commit()
    assert diary.committed == [2]


def test_an_error_in_what_follows_does_not_undo_the_commit(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands, other callbacks run, and the error is logged."""
    diary = Diary()

    def fail() -> None:
        raise ZeroDivisionError

    with orm.Session(engine) as session:
        session.add(Order(1))
        when_committed(session, fail, fail)
        diary.ask(session, 2)
        session.commit()
    assert diary.committed == [2]
    assert "the commit itself stands" in caplog.text


def test_sessions_do_not_mix(engine: sa.Engine) -> None:
    """A commit of one session calls no callback of another."""
    diary = Diary()
    with orm.Session(engine) as one, orm.Session(engine) as other:
        diary.ask(one, 1)
        diary.ask(other, 2)
        other.commit()
        assert diary.committed == [2]
    assert (diary.committed, diary.dropped) == ([2], [1])


def test_scoped_sessions(engine: sa.Engine) -> None:
    """A scoped session stands for the session of its thread."""
    diary = Diary()
    scoped = orm.scoped_session(orm.sessionmaker(engine))
    diary.ask(scoped, 1)
    other = threading.Thread(target=scoped.commit)
    other.start()
    other.join()
    assert diary.committed == []
    scoped.commit()
    scoped.remove()
    assert diary.committed == [1]


def test_other_things_are_no_session() -> None:
    """Anything but a session is a TypeError that names the type."""
    with pytest.raises(TypeError, match="NoneType"):
        when_committed(None, lambda: None, lambda: None)  # type: ignore[arg-type]


async def test_async_sessions(engine: sa.Engine) -> None:
    """The same for an AsyncSession, plain, with savepoints, and scoped."""
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    diary = Diary()
    async with AsyncSession(async_engine) as session:
        diary.ask(session, 1)
        async with session.begin_nested():
            session.add(Order(1))
            diary.ask(session, 2)
        undone = await session.begin_nested()
        diary.ask(session, 3)
        await undone.rollback()
        await session.commit()
        assert (diary.committed, diary.dropped) == ([1, 2], [3])
        diary.ask(session, 4)
        await session.rollback()
        diary.ask(session, 5)
    assert (diary.committed, diary.dropped) == ([1, 2], [3, 4, 5])
    sessions = async_sessionmaker(async_engine)
    scoped = async_scoped_session(sessions, scopefunc=asyncio.current_task)
    diary.ask(scoped, 6)
    await scoped.commit()
    await scoped.remove()
    assert diary.committed == [1, 2, 6]
    await async_engine.dispose()
