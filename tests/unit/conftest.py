"""What unit tests share: settings without an environment, and virtual time."""

import inspect
import os
from pathlib import Path

import pytest

from order_relay.settings import Settings
from tests.support.virtual_time import virtual_time


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module, name: str, obj: object) -> None:
    """Run async tests in virtual time if they, or their module, have the mark for it."""
    marks = [*collector.iter_markers(), *getattr(obj, "pytestmark", ())]
    if (
        name.startswith("test_")
        and inspect.iscoroutinefunction(obj)
        and any(mark.name == "virtual_time" for mark in marks)
    ):
        setattr(collector.obj, name, virtual_time(obj))


@pytest.fixture
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without settings, in an empty folder."""
    for name in list(os.environ):
        if name.lower().removesuffix("_file") in Settings.model_fields or (
            name.lower() in Settings.model_fields
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
