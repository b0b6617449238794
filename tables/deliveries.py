"""The table ``deliveries``: how the record of each order ended. An adapter, nothing more."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import faust

from app.events import OrderId
from app.order_status.book import DeliveryBook
from app.order_status.changelog import Changelog
from app.order_status.entry import Entry
from app.order_status.recovery import Recovery
from app.order_status.store import MemoryStore, PartitionStore
from app.publishing.client_config import client_config

if TYPE_CHECKING:
    from app.main import RelayApp

NAME = "deliveries"


class DeliveriesTable(faust.Table[OrderId, Entry]):
    """The table as Faust shows it: its name, its changelog, and entries to read by order id.

    Entries are written by deliveries alone. Their changelog and its recovery are not Faust's
    (docs/decisions/0014).
    """

    def __init__(self, app: RelayApp, book: DeliveryBook, folder: Path) -> None:
        """Show the entries of ``book``; ``folder`` is where they are on disk, if they are."""
        super().__init__(app, name=NAME, help="What became of each order.")
        self._book = book
        self._folder = folder

    def __getitem__(self, key: OrderId) -> Entry:
        """Return an order's entry, where this worker has its partition."""
        entry = self._book.find(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def __contains__(self, key: object) -> bool:
        """Whether this worker has an entry of the order."""
        return isinstance(key, int | str) and self._book.find(key) is not None

    def __len__(self) -> int:
        """How many entries this worker has; estimated where they are on disk."""
        return self._book.entries

    def __setitem__(self, key: OrderId, value: Entry) -> NoReturn:
        """Refuse.

        Raises:
            TypeError: Always.
        """
        raise TypeError("entries of the table deliveries are written by deliveries alone")

    def __delitem__(self, key: OrderId) -> NoReturn:
        """Refuse.

        Raises:
            TypeError: Always.
        """
        raise TypeError("entries of the table deliveries are removed by age alone")

    async def on_rebalance(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the book follows the consumer itself."""

    def reset_state(self) -> None:
        """Remove what is on disk, for ``faust -A app reset``; the changelog has it all."""
        shutil.rmtree(self._folder, ignore_errors=True)


def register(app: RelayApp) -> None:
    """Register the table, unless it is switched off."""
    settings = app.settings
    if settings.deliveries_store == "off":
        return
    in_memory = settings.deliveries_store == "memory"
    folder = settings.data_dir / settings.deliveries_changelog_topic
    changelog = Changelog(app.kafka_producer, settings.deliveries_changelog_topic)
    book = DeliveryBook(
        changelog,
        Recovery(
            client_config(settings),
            changelog.topic,
            make_topic=True,
        ),
        _in_memory if in_memory else partial(_on_disk, folder),
        app.finish,
        app.metrics,
        retention_seconds=settings.deliveries_retention_hours * 3600,
        max_entries=settings.deliveries_max_entries,
    )
    app.tables.add(DeliveriesTable(app, book, folder))
    app.keep_deliveries(book)


def _in_memory(partition: int) -> PartitionStore:
    return MemoryStore()


def _on_disk(folder: Path, partition: int) -> PartitionStore:
    from app.order_status.rocks import RocksStore  # noqa: PLC0415 - only who wants it loads it

    return RocksStore(folder / str(partition))
