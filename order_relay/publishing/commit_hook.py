"""Callbacks for the commit or the rollback of a SQLAlchemy transaction.

When a savepoint is released, its callbacks move to the transaction around it; when it is rolled
back, they are dropped. A session without callbacks costs one look-up in a dictionary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

logger = logging.getLogger(__name__)

AnySession: TypeAlias = (
    Session | AsyncSession | scoped_session[Session] | async_scoped_session[AsyncSession]
)

_KEY = "order_relay.commit_hook"
# By transaction: what to call after its commit, and what else.
_Callbacks: TypeAlias = dict[
    SessionTransaction, list[tuple[Callable[[], None], Callable[[], None]]]
]


def when_committed(
    session: AnySession,
    committed: Callable[[], None],
    dropped: Callable[[], None] = lambda: None,
) -> None:
    """Call one of two functions, once, when the session's current transaction has ended.

    The call is made in the thread that ends the transaction; it must not use the session. Calls are
    made in the order of registration. An exception is logged; the commit stands.

    Args:
        session: A session; a transaction is begun if there is none.
        committed: Called after the outermost transaction has committed.
        dropped: Called after that transaction, or a savepoint around this call, was rolled back,
            was closed without a commit, or failed to commit. Also called if the session is part of
            a larger transaction of its connection, whose end it does not see.
    """
    _listen()
    sync = sync_session(session)
    if not sync.in_transaction():
        sync.begin()
    transaction = sync.get_nested_transaction() or sync.get_transaction()
    assert transaction is not None  # noqa: S101 - there is one now
    callbacks: _Callbacks = sync.info.setdefault(_KEY, {})
    callbacks.setdefault(transaction, []).append((committed, dropped))


def sync_session(session: AnySession) -> Session:
    """Return the ``Session`` beneath a session of any kind.

    Raises:
        TypeError: It is not a session.
    """
    given: object = session
    if isinstance(given, scoped_session | async_scoped_session):
        given = given()
    if isinstance(given, AsyncSession):
        given = given.sync_session
    if not isinstance(given, Session):
        raise TypeError(f"not a SQLAlchemy session: {type(session).__name__}")
    return given


@cache
def _listen() -> None:
    sa.event.listen(Session, "after_commit", _after_commit)
    sa.event.listen(Session, "after_transaction_end", _after_transaction_end)


def _after_commit(session: Session) -> None:
    """A savepoint was released, or the outermost transaction has committed."""
    callbacks: _Callbacks | None = session.info.get(_KEY)
    if not callbacks:
        return
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None or transaction not in callbacks:
        return
    if transaction.nested:
        outer = transaction.parent
        while outer is not None and outer.parent is not None and not outer.nested:
            outer = outer.parent
        assert outer is not None  # noqa: S101 - a savepoint is inside something
        callbacks.setdefault(outer, []).extend(callbacks.pop(transaction))
    elif _in_outer_transaction(session):
        logger.error(
            "Not published: the session has committed, but the transaction of its connection, "
            "which was begun outside of it, has not"
        )  # and after_transaction_end drops them
    else:
        for committed, _ in callbacks.pop(transaction):
            _call(committed)


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Callbacks that a transaction still has at its end were not committed."""
    callbacks: _Callbacks = session.info.get(_KEY, {})
    for _, dropped in callbacks.pop(transaction, ()):
        _call(dropped)


def _in_outer_transaction(session: Session) -> bool:
    # The session's own transaction has just ended: one still open was begun outside of it.
    bind: Any = session.bind
    return isinstance(bind, sa.Connection) and bind.in_transaction()


def _call(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:
        logger.exception("What was to follow a commit failed; the commit itself stands")
