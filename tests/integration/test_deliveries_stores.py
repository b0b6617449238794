"""The stores in memory and in RocksDB behave alike."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from order_relay.deliveries.stores import WRITTEN_TOGETHER, MemoryStore, RocksStore, Store

Open = Callable[[], Store]


@pytest.fixture(params=["memory", "rocksdb"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens empty stores, and closes them in the end."""
    stores: list[Store] = []

    def make() -> Store:
        in_memory = request.param == "memory"
        stores.append(MemoryStore() if in_memory else RocksStore(tmp_path / str(len(stores))))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def test_the_oldest_come_first_and_no_more_than_asked(opened: Open) -> None:
    """A sweep begins with the oldest."""
    store = opened()
    for number in range(10):
        store.put(b"%d" % number, number, b"x")
    assert store.older_than(5, 3) == [b"0", b"1", b"2"]
    assert store.older_than(5, 100) == [b"0", b"1", b"2", b"3", b"4"]


def test_clearing_forgets_everything(opened: Open) -> None:
    """Entries and the changelog offset are gone."""
    store = opened()
    store.put(b"7", 100, b"x")
    store.read_up_to(17)
    assert store.next_offset == 17
    store.clear()
    assert [store.next_offset, store.get(b"7"), *store.older_than(1000, 10)] == [None, None]


KEYS = st.binary(max_size=3)
# A key, seconds since the last change, and a value; None: the key is removed.
CHANGES = st.lists(st.tuples(KEYS, st.integers(0, 50), st.none() | st.binary(max_size=3)))


@given(changes=CHANGES)
@example(changes=[(b"7", 1, b"first"), (b"8", 1, b"other"), (b"7", 1, b"second"), (b"", 50, None)])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_store_behaves_like_a_dictionary(
    opened: Open, changes: list[tuple[bytes, int, bytes | None]]
) -> None:
    """Any sequence of puts and removes, with any bytes as keys; the oldest come first."""
    store = opened()
    model: dict[bytes, tuple[int, bytes]] = {}
    clock = 0
    for key, step, value in changes:
        clock += step  # an entry never finishes before the ones that were put earlier
        if value is None:
            store.remove(key)
            model.pop(key, None)
        else:
            store.put(key, clock, value)
            model[key] = (clock, value)
    assert {key: store.get(key) for key in model} == {k: value for k, (_, value) in model.items()}
    cut = clock // 2
    old = store.older_than(cut, 1000)
    assert set(old) == {k for k, (at, _) in model.items() if at < cut}
    assert [model[key][0] for key in old] == sorted(model[key][0] for key in old)
    assert store.get(b"no such key") is None


def test_what_is_on_disk_is_there_after_a_restart(tmp_path: Path) -> None:
    """Entries, their age, and the changelog offset."""
    first = RocksStore(tmp_path / "0")
    first.put(b"7", 100, b"x")
    first.read_up_to(17)
    first.close()
    again = RocksStore(tmp_path / "0")
    assert again.get(b"7") == b"x"
    assert again.older_than(101, 10) == [b"7"]
    assert again.next_offset == 17
    again.close()


def test_what_was_read_is_on_disk_when_a_worker_is_killed(tmp_path: Path) -> None:
    """Entries not yet on disk are in the changelog after the stored offset."""
    killed = RocksStore(tmp_path / "killed")
    killed.put(b"7", 100, b"x")
    killed.read_up_to(17)
    for number in range(WRITTEN_TOGETHER - 1):
        killed.put(b"later-%d" % number, 200, b"y")
    shutil.copytree(tmp_path / "killed", tmp_path / "found")
    killed.close()
    found = RocksStore(tmp_path / "found")
    assert (found.get(b"7"), found.next_offset) == (b"x", 17)
    assert found.older_than(1000, 10) == [b"7"]
    found.close()


def test_many_entries_are_written_on_the_way(tmp_path: Path) -> None:
    """Entries are found before and after a write to disk, and repeated puts count once."""
    store = RocksStore(tmp_path / "0")
    for number in range(3 * WRITTEN_TOGETHER):
        store.put(b"%d" % (number % (2 * WRITTEN_TOGETHER)), number, b"%d" % number)
        assert store.get(b"0") == (b"0" if number < 2 * WRITTEN_TOGETHER else b"200")
    assert store.older_than(10**6, 10**6) == [
        b"%d" % (number % (2 * WRITTEN_TOGETHER))
        for number in range(WRITTEN_TOGETHER, 3 * WRITTEN_TOGETHER)
    ]
    store.close()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    """Opening it twice fails until the first store is closed."""
    first = RocksStore(tmp_path / "0")
    with pytest.raises(Exception, match=r"(?i)lock"):
        RocksStore(tmp_path / "0")
    first.close()
    RocksStore(tmp_path / "0").close()


def test_a_database_that_fails_switches_its_store_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing raises, one line is logged, and the stored offset stays before lost writes."""
    store = RocksStore(tmp_path / "5")
    store.put(b"7", 100, b"x")
    store.read_up_to(17)
    for number in range(WRITTEN_TOGETHER - 1):
        store.put(b"%d" % number, 200, b"y")
    with monkeypatch.context() as patch:
        patch.setattr(store, "_new_batch", lambda **_: 1 // 0)
        store.put(b"last", 200, b"y")
    assert store.failed
    store.read_up_to(30)
    store.remove(b"7")
    store.clear()
    assert [store.get(b"7"), store.next_offset, store.older_than(999, 9), len(store)] == [
        None, None, [], 0
    ]  # fmt: skip
    store.close()
    (line,) = caplog.messages
    assert line.startswith("Table deliveries: store failed")
    assert "partition=5" in line
    again = RocksStore(tmp_path / "5")
    assert (again.get(b"7"), again.next_offset, again.failed) == (b"x", 17, False)
    again.close()


@pytest.mark.parametrize("call", ["get", "next_offset", "older_than", "len", "read_up_to", "close"])
def test_any_call_may_be_the_one_that_fails(tmp_path: Path, call: str) -> None:
    """The table never delays deliveries."""
    store = RocksStore(tmp_path / "0")
    store.put(b"7", 100, b"x")
    store._database.close()
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: store.get(b"8"), "next_offset": lambda: store.next_offset,
        "older_than": lambda: store.older_than(999, 9), "len": lambda: len(store),
        "read_up_to": lambda: store.read_up_to(1), "close": store.close,
    }  # fmt: skip
    calls[call]()
    assert store.failed
