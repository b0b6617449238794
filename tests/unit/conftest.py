"""What unit tests of the settings share."""

import os
from pathlib import Path

import pytest

from order_relay.settings import Settings


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
