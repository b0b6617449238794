"""Required mode (RELAY_REQUIRE_ALL=1): every kind of skip is a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.child import run

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
XFAIL = "@pytest.mark.xfail\ndef test_it(): assert False"
# How pytest's summary marks a failed file.
FAILURES = ("FAILED ", "ERROR ", "SUBFAILED")


@pytest.mark.parametrize("required", ["1", "0"])
def test_a_skip_of_any_kind_fails_where_all_is_required(tmp_path: Path, required: str) -> None:
    """The failure has the reason; an expected failure does not count as a skip.

    Elsewhere nothing fails.
    """
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    for name, body in (SKIPS | {"xfail": XFAIL}).items():
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n{body}\n")
    environment = os.environ | {
        "RELAY_REQUIRE_ALL": required, "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none of them is needed
        "COLUMNS": "500",  # the summary shows whole reasons
    }  # fmt: skip
    options = ("-p", "tests.conftest", "-rsfE", "--continue-on-collection-errors")
    done = run("-m", "pytest", *options, folder=tmp_path, **environment)
    summary = done.stdout.partition("short test summary info")[2].splitlines()
    failed = [line for line in summary if line.startswith(FAILURES)]
    reasons = {
        name for name in SKIPS for line in failed if f"test_{name}.py" in line and "because" in line
    }
    assert reasons == (set(SKIPS) if failed else set()), done.stdout
    assert bool(failed) == (required == "1"), done.stdout
    assert ("skipped" in summary[-1]) == (required == "0")
    assert "1 xfailed" in summary[-1]
    assert done.returncode in ({1, 2} if required == "1" else {0, 5})
