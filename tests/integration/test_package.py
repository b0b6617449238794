"""What ``pip install order-relay`` brings: the engine, few packages, and no top-level ``app``."""

import importlib.metadata
import os
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.child import ROOT, run
from tests.support.wheels import wheel_source

OLDEST = ROOT / "requirements" / "oldest.txt"
WORKER_ONLY = {"faust-streaming", "mode-streaming", "aiokafka", "aiohttp", "rocksdict", "uvloop"}
LIMIT_SECONDS = 300


def _run(*command: str, **environment: str) -> str:
    """Run a command of this Python in the root; returns its output."""
    ended = run(*command, folder=ROOT, **(os.environ | environment))
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def _requirements(package: str, extras: set[str]) -> set[tuple[str, frozenset[str]]]:
    """The requirements of an installed package, with these extras."""
    found = set()
    for text in importlib.metadata.requires(package) or ():
        one = Requirement(text)
        wanted = [{"extra": extra} for extra in extras or {""}]
        if one.marker is None or any(one.marker.evaluate(each) for each in wanted):
            found.add((one.name.lower().replace("_", "-"), frozenset(one.extras)))
    return found


def _closure() -> set[str]:
    """Every other package that ``pip install order-relay`` installs."""
    waiting, seen = [("order-relay", frozenset[str]())], set()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += _requirements(one[0], set(one[1]))
    return {name for name, _ in seen} - {"order-relay"}


def test_an_order_service_installs_few_packages() -> None:
    """At most two dozen, and none of those that only a worker needs."""
    packages = _closure()
    assert {"confluent-kafka", "sqlalchemy", "msgspec"} <= packages
    assert not WORKER_ONLY & packages
    assert len(packages) <= 24, sorted(packages)


def test_the_wheel_has_the_engine_alone(tmp_path: Path) -> None:
    """No ``app``, ``agents``, ``tables`` or ``demo`` that could collide with an order service's."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("order_relay", "pyproject.toml", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    _run(
        *("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("-w", str(tmp_path), str(source)),
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (scripts,) = [name for name in names if name.endswith("/entry_points.txt")]
        assert b"order-relay = order_relay.cli.main:main" in archive.read(scripts)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"order_relay"}
    assert "order_relay/py.typed" in names
    assert {
        "order_relay/web/console/templates/overview.html",
        "order_relay/web/console/console.js",
    } <= {*names}
    assert any(name.startswith("order_relay/fallback/sql/migrations/versions/r") for name in names)
    site = tmp_path / "site"
    _run(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
        *("--target", str(site)),
        str(wheel),
    )
    told = run(sys.executable, site / "bin" / "order-relay", "--version", PYTHONPATH=site).stdout
    assert told.split() == ["order-relay", importlib.metadata.version("order-relay")]


def test_a_command_without_the_workers_packages_says_what_to_install() -> None:
    """An order service's installation has the command without its dependencies."""
    code = "import sys; sys.modules['click'] = None; import order_relay.__main__"
    ended = run("-c", code)
    line = "order-relay: its commands need pip install 'order-relay[worker]'\n"
    assert (ended.returncode, ended.stderr) == (1, line)


@pytest.mark.timeout(LIMIT_SECONDS)
def test_publishing_works_with_the_oldest_sqlalchemy(tmp_path: Path) -> None:
    """Outbox, after-commit and the examples, on the first version that pyproject.toml allows."""
    _run(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target"),
        *(str(tmp_path), "-r", str(OLDEST)),
        **wheel_source([OLDEST]),
    )
    version = "import sqlalchemy; print(sqlalchemy.__version__)"
    assert _run("-c", version, PYTHONPATH=f"{tmp_path}").startswith("2.0.")
    folder = "tests/integration/publishing"
    modules = ("test_outbox.py", "test_after_commit.py", "test_commit_hook.py", "test_examples.py")
    said = _run(
        *("-m", "pytest", "-q", "-k", "not postgresql", "-p", "no:cacheprovider"),
        *(f"{folder}/{name}" for name in modules),
        PYTHONPATH=f"{tmp_path}",
    )
    assert " passed" in said
