"""Set-up of every test: required mode, parallel processes, and how Hypothesis searches."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import hypothesis
import pytest

from tests.support.run import FirstProcess, TestRun

FIRST = pytest.StashKey[FirstProcess]()
REQUIRED = os.environ.get("RELAY_REQUIRE_ALL") == "1"
"""CI sets this: a test that cannot run there is a failure, never a quiet skip."""

# Two runs of one commit must agree; `make fuzz` searches at random (tests/fuzz.py).
# On a busy machine the time that an example takes says nothing.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("fuzz", deadline=None, print_blob=True)
hypothesis.settings.load_profile("suite")

pytest_plugins = ["tests.support.fixtures"]


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that keeps the reason; an expected failure stays one."""
    if not REQUIRED or not report.skipped or hasattr(report, "wasxfail"):
        return
    where = report.longrepr
    reason = where[2] if isinstance(where, tuple) else str(where)
    report.outcome = "failed"
    report.longrepr = f"RELAY_REQUIRE_ALL=1 allows no skips, and this was: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Refuse skips by a mark, in a fixture, in a test or in a subtest."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse skips of whole modules, such as ``importorskip``."""
    report = yield
    _refuse_skip(report)
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Create what the processes of this run share, in the first process."""
    if not hasattr(config, "workerinput"):
        config.stash[FIRST] = FirstProcess()


def pytest_unconfigure(config: pytest.Config) -> None:
    """End it."""
    if (first := config.stash.get(FIRST, None)) is not None:
        first.close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass it to a process of pytest-xdist."""
    node.workerinput["shared"] = node.config.stash[FIRST].shared


@pytest.fixture(scope="session")
def test_run(pytestconfig: pytest.Config) -> TestRun:
    """What this process shares with the others."""
    if (given := getattr(pytestconfig, "workerinput", None)) is not None:
        return TestRun(given["shared"])
    return TestRun(pytestconfig.stash[FIRST].shared)


def pytest_report_header() -> str:
    """Show the mode."""
    return f"relay: {'every test is required' if REQUIRED else 'tests may skip, with a reason'}"
