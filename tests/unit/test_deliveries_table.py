"""The table ``deliveries`` as Faust shows it: read by order id, and read-only."""

from pathlib import Path
from typing import cast

import pytest

from order_relay.deliveries.entries import Entry
from order_relay.settings import load_settings
from order_relay.worker.consumer_app import ForeignChangelogs
from tables.deliveries import DeliveriesView, show
from tests.support.deliveries_fakes import TableBench
from tests.support.runtimes import app_of_a_consumer, runtime

KNOWN = Entry(7, "delivered", "paid-7", 1, "order-paid-events", 0, 3, 1000)


async def test_entries_are_read_by_order_id(tmp_path: Path) -> None:
    """This worker's entry of an order; a missing one is a KeyError, as in any mapping.

    A change that is not in the changelog would be undone by the next recovery: it is refused.
    """
    bench = TableBench()
    bench.recovery.known = {0: [KNOWN]}
    await bench.arrive(0)
    table = DeliveriesView(app_of_a_consumer(load_settings()), bench.deliveries, tmp_path)
    assert table[7] == KNOWN
    assert 7 in table
    assert len(table) == 1
    assert 8 not in table
    with pytest.raises(KeyError):
        table[8]
    with pytest.raises(TypeError, match="only deliveries write entries"):
        table[7] = KNOWN
    with pytest.raises(TypeError, match="removed by age only"):
        del table[7]


def test_resetting_removes_what_is_on_disk(tmp_path: Path) -> None:
    """``faust -A app reset``: the changelog has it all."""
    folder = tmp_path / "changelog"
    (folder / "0").mkdir(parents=True)
    table = DeliveriesView(app_of_a_consumer(load_settings()), TableBench().deliveries, folder)
    table.reset_state()
    table.reset_state()
    assert not folder.exists()


@pytest.mark.parametrize(("store", "shown"), [("memory", ["deliveries"]), ("off", [])])
async def test_it_is_in_the_app_of_its_consumer(store: str, shown: list[str]) -> None:
    """Unless it is switched off. Faust has nothing to recover: changelogs are not the group's."""
    with runtime(load_settings(deliveries_store=store)) as consumer:
        show(consumer)
        found = consumer.app.tables
        assert list(found) == shown
        changelogs = [f"logging-consumer-group-{name}-changelog" for name in shown]
        assert [table.changelog_topic_name for table in found.values()] == changelogs
        assert cast(ForeignChangelogs, found).changelog_topics == set()
