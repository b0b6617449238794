"""The limits to a worker's end, where the host has no more threads."""

import os
import threading

import pytest

from order_relay.worker import faust_worker


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of threads is reached."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_shutdown_goes_on_without_its_deadline() -> None:
    """Else the consumers would keep their partitions, and deliver nothing."""
    watch = faust_worker.ShutdownWatch()
    watch.allow(5)
    watch.allow(1)
    watch.cancel()


def test_a_process_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own status: nothing would end it beside threads that run on."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(faust_worker, "_exit_status", None)  # as before, also after the test
    faust_worker.exit_soon(3)
    assert ended == [3]
