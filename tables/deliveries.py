"""The table ``deliveries`` of each consumer: how the record of each order ended."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import faust

from order_relay.deliveries.entries import Entry
from order_relay.deliveries.table import DeliveriesTable
from order_relay.model.order_paid import OrderId
from order_relay.worker.consumer_runtime import table_folder

if TYPE_CHECKING:
    from order_relay.worker.consumer_runtime import ConsumerRuntime
    from order_relay.worker.relay_app import RelayApp

NAME = "deliveries"


class DeliveriesView(faust.Table[OrderId, Entry]):
    """The table as Faust shows it: its name, its changelog, and entries to read by order id.

    Entries are written by deliveries alone. Their changelog and its recovery are not Faust's
    (docs/decisions/0014).
    """

    def __init__(self, app: faust.App, deliveries: DeliveriesTable, folder: Path) -> None:
        """Show the entries of ``deliveries``; ``folder`` is where they are on disk, if they are."""
        super().__init__(app, name=NAME, help="What became of each order.")
        self._book = deliveries
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
        """Remove what is on disk; the changelog has it all."""
        shutil.rmtree(self._folder, ignore_errors=True)


def register(app: RelayApp) -> None:
    """Show each consumer's table in its Faust app, unless it is switched off."""
    app.on_consumer.append(show)


def show(consumer: ConsumerRuntime) -> None:
    """Show the table of one consumer."""
    if consumer.deliveries is not None:
        folder = table_folder(consumer.settings)
        consumer.app.tables.add(DeliveriesView(consumer.app, consumer.deliveries, folder))
