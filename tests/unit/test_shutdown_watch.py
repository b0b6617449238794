"""The limits of a worker's shutdown, if no thread can be started."""

import os
import threading

import pytest

from order_relay.worker import faust_worker


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread can be started."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_shutdown_goes_on_without_its_deadline() -> None:
    """Else the consumers would keep their partitions and deliver nothing."""
    watch = faust_worker.ShutdownWatch()
    watch.allow(5)
    watch.allow(1)
    watch.cancel()


def test_a_process_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own status, as no watch can end it beside running threads."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(faust_worker, "_exit_status", None)  # as before, also after the test
    faust_worker.exit_soon(3)
    assert ended == [3]
