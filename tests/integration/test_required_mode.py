"""Required mode (RELAY_REQUIRE_ALL=1): every kind of skip is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SKIPS = {
    "mark": "@pytest.mark.skip(reason='because')\ndef test_it(): ...",
    "skipif": "@pytest.mark.skipif(True, reason='because')\ndef test_it(): ...",
    "in_the_test": "def test_it(): pytest.skip('because')",
    "in_a_fixture": "@pytest.fixture\ndef it(): pytest.skip('because')\ndef test_it(it): ...",
    "at_import": "pytest.skip('because', allow_module_level=True)",
    "importorskip": "pytest.importorskip('no_such_module', reason='because')",
    "in_a_subtest": (
        "def test_it(subtests):\n    with subtests.test():\n        pytest.skip('because')"
    ),
    "at_teardown": "@pytest.fixture\ndef it():\n    yield\n    pytest.skip('because')\n"
    "def test_it(it): ...",
}
# How pytest's summary marks a failed file.
FAILURES = ("FAILED ", "ERROR ", "SUBFAILED")

# One run has all kinds of skips: starting pytest is slow.
pytestmark = pytest.mark.xdist_group("required mode")


class Run:
    """Runs pytest on small files, with the hooks of this project's conftest."""

    def __init__(self, folder: Path, bodies: dict[str, str], required: str) -> None:
        (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
        for name, body in bodies.items():
            (folder / f"test_{name}.py").write_text(f"import pytest\n{body}\n")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-rsfE",
             "--continue-on-collection-errors"],
            cwd=folder,
            env=os.environ
            | {
                "RELAY_REQUIRE_ALL": required,
                "PYTEST_ADDOPTS": "",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none of them is needed
                "PYTHONPATH": str(ROOT),
                "COLUMNS": "500",  # the summary shows whole reasons
            },
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        self.status = done.returncode
        self.output = done.stdout + done.stderr
        self.last_line = done.stdout.splitlines()[-1]
        _, _, self._summary = done.stdout.partition("short test summary info")

    def failures(self, name: str) -> list[str]:
        """The lines of the summary that show a file's failure or error."""
        return [
            line
            for line in self._summary.splitlines()
            if line.startswith(FAILURES) and f"test_{name}.py" in line
        ]


@pytest.fixture(scope="module")
def required(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every kind of skip in required mode."""
    return Run(tmp_path_factory.mktemp("required"), SKIPS, "1")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every kind of skip without required mode."""
    return Run(tmp_path_factory.mktemp("elsewhere"), SKIPS, "0")


@pytest.mark.parametrize("name", SKIPS)
def test_skip_fails_where_all_is_required(required: Run, name: str) -> None:
    """A skip of any kind fails the run, and its reason is in the output."""
    assert required.status in {1, 2}, required.output
    assert any("because" in line for line in required.failures(name)), required.output
    assert "skipped" not in required.last_line


def test_skip_is_a_skip_elsewhere(elsewhere: Run) -> None:
    """Without required mode a skip fails nothing."""
    assert elsewhere.status in {0, 5}, elsewhere.output
    assert not [line for name in SKIPS for line in elsewhere.failures(name)], elsewhere.output
    assert "skipped" in elsewhere.last_line


def test_expected_failure_stays_expected(tmp_path: Path) -> None:
    """An expected failure is not a skip."""
    done = Run(tmp_path, {"xfail": "@pytest.mark.xfail\ndef test_it(): assert False"}, "1")
    assert done.status == 0, done.output
    assert "1 xfailed" in done.last_line
