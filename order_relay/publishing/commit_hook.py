"""Doing something when a SQLAlchemy transaction has committed, and never when it has not.

A savepoint that is released hands what was asked for on to the transaction around it; one that is
rolled back takes it along. Sessions that never ask pay one look into a dictionary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Wish:
    committed: Callable[[], None]
    dropped: Callable[[], None]


def when_committed(
    session: AnySession, committed: Callable[[], None], dropped: Callable[[], None]
) -> None:
    """Call one of two functions, once, when the session's current transaction has ended.

    Both are called in the thread that ends it, in the order in which they were asked for, while
    the session cannot be used. What they raise is logged: the commit has been made.

    Args:
        session: A session; a transaction is begun in it if none is.
        committed: The outermost transaction has committed.
        dropped: It, or a savepoint around this call, was rolled back, was closed without a
            commit, or failed to commit; or the session is only part of a larger transaction of
            its connection, whose end it does not see.
    """
    _listen()
    sync = sync_session(session)
    if not sync.in_transaction():
        sync.begin()
    transaction = sync.get_nested_transaction() or sync.get_transaction()
    assert transaction is not None  # noqa: S101 - one has just been begun
    _wishes(sync).setdefault(transaction, []).append(_Wish(committed, dropped))


def sync_session(session: AnySession) -> Session:
    """Return the plain session that a session of any kind stands on.

    Raises:
        TypeError: It is none.
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
    sa.event.listen(Session, "after_transaction_end", _after_end)


def _wishes(session: Session) -> dict[SessionTransaction, list[_Wish]]:
    wishes: dict[SessionTransaction, list[_Wish]] = session.info.setdefault(_KEY, {})
    return wishes


def _after_commit(session: Session) -> None:
    """A savepoint was released, or the outermost transaction has committed."""
    if not session.info.get(_KEY):
        return
    wishes = _wishes(session)
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None or transaction not in wishes:
        return
    if transaction.nested:
        outer = transaction.parent
        while outer is not None and outer.parent is not None and not outer.nested:
            outer = outer.parent
        assert outer is not None  # noqa: S101 - a savepoint is inside something
        wishes.setdefault(outer, []).extend(wishes.pop(transaction))
    elif _is_part_of_another(session):
        logger.error(
            "Not published: the session has committed, but the transaction of its connection, "
            "which was begun outside of it, has not"
        )  # and after_transaction_end drops them
    else:
        for wish in wishes.pop(transaction):
            _call(wish.committed)


def _after_end(session: Session, transaction: SessionTransaction) -> None:
    """Whatever is left of a transaction at its end was not committed."""
    if session.info.get(_KEY):
        for wish in _wishes(session).pop(transaction, ()):
            _call(wish.dropped)


def _is_part_of_another(session: Session) -> bool:
    # Its own transaction has just ended: one that is still open is somebody else's.
    bind: Any = session.bind
    return isinstance(bind, sa.Connection) and bind.in_transaction()


def _call(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception:
        logger.exception("What was to follow a commit failed; the commit itself stands")
