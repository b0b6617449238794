"""Required mode (RELAY_REQUIRE_ALL=1): every kind of skip is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

SKIPS = {
    "mark": "@pytest.mark.skip(reason='because')\ndef test_it(): ...",
    "skipif": "@pytest.mark.skipif(True, reason='because')\ndef test_it(): ...",
    "in the test": "def test_it(): pytest.skip('because')",
    "in a fixture": ("@pytest.fixture\ndef it(): pytest.skip('because')\ndef test_it(it): ..."),
    "at import": "pytest.skip('because', allow_module_level=True)",
    "importorskip": "pytest.importorskip('no_such_module', reason='because')",
    "in a subtest": (
        "def test_it(subtests):\n    with subtests.test():\n        pytest.skip('because')"
    ),
    "at teardown": "@pytest.fixture\ndef it():\n    yield\n    pytest.skip('because')\n"
    "def test_it(it): ...",
}


def _run(folder: Path, body: str, required: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    (folder / "test_it.py").write_text(f"import pytest\n{body}\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-rsfE"],
        cwd=folder,
        env=os.environ | {"RELAY_REQUIRE_ALL": required, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("body", SKIPS.values(), ids=SKIPS)
def test_skip_fails_where_all_is_required(tmp_path: Path, body: str) -> None:
    """A skip of any kind fails the run, and its reason is in the output."""
    done = _run(tmp_path, body, "1")

    assert done.returncode in {1, 2}, done.stdout
    assert "because" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("body", SKIPS.values(), ids=SKIPS)
def test_skip_is_a_skip_elsewhere(tmp_path: Path, body: str) -> None:
    """Without required mode a skip fails nothing."""
    done = _run(tmp_path, body, "0")

    assert done.returncode in {0, 5}, done.stdout


def test_expected_failure_stays_one(tmp_path: Path) -> None:
    """An expected failure is no skip."""
    done = _run(tmp_path, "@pytest.mark.xfail\ndef test_it(): assert False", "1")

    assert done.returncode == 0, done.stdout
