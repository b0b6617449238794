"""The table ``deliveries`` of each consumer: the result of each order's delivery."""

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
    """The table as a Faust table: its name, and read access to its entries by order id.

    Only deliveries write entries. Faust handles neither the changelog nor its recovery
    (docs/decisions/0014).
    """

    def __init__(self, app: faust.App, deliveries: DeliveriesTable, folder: Path) -> None:
        """Show the entries of ``deliveries``; ``folder`` holds them if they are kept on disk."""
        super().__init__(app, name=NAME, help="The result of each order's delivery.")
        self._deliveries = deliveries
        self._folder = folder

    def __getitem__(self, key: OrderId) -> Entry:
        """Return an order's entry.

        Raises:
            KeyError: This worker has none.
        """
        entry = self._deliveries.find(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def __contains__(self, key: object) -> bool:
        """Return whether this worker has an entry for the order."""
        return isinstance(key, int | str) and self._deliveries.find(key) is not None

    def __len__(self) -> int:
        """Return how many entries this worker has; an estimate if they are on disk."""
        return self._deliveries.entries

    def __setitem__(self, key: OrderId, value: Entry) -> NoReturn:
        """Refuse.

        Raises:
            TypeError: Always.
        """
        raise TypeError("only deliveries write entries of the table deliveries")

    def __delitem__(self, key: OrderId) -> NoReturn:
        """Refuse.

        Raises:
            TypeError: Always.
        """
        raise TypeError("entries of the table deliveries are removed by age only")

    async def on_rebalance(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the deliveries table follows rebalances by itself."""

    def reset_state(self) -> None:
        """Delete the entries on disk. They are read again from the changelog."""
        shutil.rmtree(self._folder, ignore_errors=True)


def register(app: RelayApp) -> None:
    """Show each consumer's table in its Faust app, unless it is switched off."""
    app.on_consumer.append(show)


def show(consumer: ConsumerRuntime) -> None:
    """Show the table of one consumer."""
    if consumer.deliveries is not None:
        folder = table_folder(consumer.settings)
        consumer.app.tables.add(DeliveriesView(consumer.app, consumer.deliveries, folder))
