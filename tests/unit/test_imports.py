"""What an import brings in: our own agents and tables, and Faust only where it is needed."""

import json
import pkgutil
from pathlib import Path

import pytest

import agents
import app
import tables
from order_relay.settings import load_settings
from tests.support.child import run_python
from tests.support.runtimes import app_of_a_consumer

ROOT = Path(app.__file__).parents[1]
REDRIVING = ("order_relay.dead_letters.redrive_group", "order_relay.dead_letters.open_topic")
# What an order service, the rules and the figures need: all except the worker and its clients.
PURE = [
    "app",
    "order_relay",
    "order_relay.errors",
    "order_relay.version",
    "order_relay.kafka.producer",
    "order_relay.kafka.topic_reader",
    *(
        found.name
        for package in (
            *("model", "settings", "logs", "delivery", "handlers", "fallback", "deliveries"),
            *("dead_letters", "publishing", "monitoring", "web"),
        )
        for found in pkgutil.walk_packages(
            [str(ROOT / "order_relay" / package)], prefix=f"order_relay.{package}."
        )
        # Alembic runs these.
        if not found.name.startswith("order_relay.fallback.sql.migrations")
        # These commit redrives in a group, with aiokafka.
        and found.name not in REDRIVING
    ),
]
FAUST = {"faust", "mode", "aiokafka"}


def test_agents_and_tables_are_ours() -> None:
    """Packages of these names are on PyPI too (openai-agents, PyTables): ours are imported."""
    for package in (agents, tables):
        assert Path(package.__file__ or "").parent.parent == ROOT


@pytest.mark.parametrize(
    ("session_ms", "heartbeat", "rebalance", "request_"),
    [(6000, 0.6, 60.0, 40.0), (30_000, 3.0, 60.0, 40.0), (60_000, 6.0, 120.0, 70.0)],
)
def test_times_of_the_group_follow_its_session(
    session_ms: int, heartbeat: float, rebalance: float, request_: float
) -> None:
    """Ten heartbeats a session; rebalances and requests get longer, never shorter than usual."""
    conf = app_of_a_consumer(load_settings(kafka_session_timeout_ms=session_ms)).conf
    assert conf.broker_session_timeout == session_ms / 1000
    assert conf.broker_heartbeat_interval == heartbeat
    assert (conf.broker_rebalance_timeout, conf.broker_request_timeout) == (rebalance, request_)


def test_every_agent_and_every_table_is_registered_in_the_one_app(tmp_path: Path) -> None:
    """Each module in agents/ has its consumer or task in the app; each in tables/ its table."""
    result = run_python(
        "import json, sys, app\na = app.app\nfrom app import app as again\n"
        "assert a is again is sys.modules['app'].app\n"
        "assert not hasattr(sys.modules['app'], 'nonsense')\n"
        "print(json.dumps([[one.name for one in a.consumers], [work.__name__ for work in "
        "a.background], [show.__module__ for show in a.on_consumer]]))",
        tmp_path,
    )

    assert result.returncode == 0, result.stderr
    registered, tasks, shown = json.loads(result.stdout)
    assert registered == ["order_logging"]
    assert tasks == ["fallback_replay"]
    modules = {found.name for found in pkgutil.iter_modules(agents.__path__)}
    assert modules == {*registered, *tasks}
    assert [found.name for found in pkgutil.iter_modules(tables.__path__)] == ["deliveries"]
    assert shown == ["tables.deliveries"]
    assert list(tmp_path.iterdir()) == [], "no data folder where there are no tables"


def test_pure_modules_do_not_import_faust(tmp_path: Path) -> None:
    """The rules import and run without Faust and its Kafka consumer."""
    assert {
        "order_relay.delivery.dispatcher",
        "order_relay.kafka.producer",
        "order_relay.monitoring.health",
    } <= set(PURE)
    # One after another in one interpreter: the first that imports Faust is named.
    check = f"; assert not {FAUST} & set(sys.modules), "
    lines = [f"import {name}{check}{name!r}" for name in PURE]
    result = run_python("\n".join(["import sys", *lines]), tmp_path)

    assert result.returncode == 0, result.stderr


def test_delivery_and_publishing_know_nothing_of_each_other(tmp_path: Path) -> None:
    """Each half imports without the other."""
    for half, other in [("delivery", "publishing"), ("publishing", "delivery")]:
        modules = [name for name in PURE if name.startswith(f"order_relay.{half}.")]
        result = run_python(
            f"import sys\nimport {', '.join(modules)}\n"
            f"print([name for name in sys.modules if name.startswith('order_relay.{other}')])",
            tmp_path,
        )
        assert result.stdout == "[]\n", result.stderr


def test_importing_the_app_reads_and_starts_nothing(tmp_path: Path) -> None:
    """A wrong setting is ignored until the application is used; no folder is made."""
    result = run_python(
        "import threading, app, order_relay.worker.relay_app; assert threading.active_count() == 1",
        tmp_path,
        MAX_IN_FLIGHT="0",
    )

    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_in_the_environment_configures_faust(tmp_path: Path) -> None:
    """Faust's own variables change nothing: a stray one could skip records or read elsewhere."""
    result = run_python(
        "import json, app; from order_relay.settings import load_settings; "
        "from tests.support.runtimes import app_of_a_consumer; "
        "conf = app_of_a_consumer(load_settings()).conf; print(json.dumps([conf.id, "
        "app.app.conf.web_port, conf.consumer_auto_offset_reset, [*map(str, conf.broker)]]))",
        tmp_path,
        APP_ID="other",
        BROKER_URL="kafka://elsewhere:1",
        CONSUMER_AUTO_OFFSET_RESET="latest",
        KAFKA_BOOTSTRAP_SERVERS="here:9092",
        NODE_HOSTNAME="elsewhere",
        WEB_PORT="7000",
    )

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [
        "logging-consumer-group", 7000, "earliest", ["aiokafka://here:9092"],
    ]  # fmt: skip
