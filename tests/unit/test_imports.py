"""What an import brings in: our own agents and tables, and Faust only where it is needed."""

import json
import pkgutil
from pathlib import Path

import pytest

import agents
import app
import tables
from tests.support.child import run_python

ROOT = Path(app.__file__).parents[1]
REDRIVING = ("order_relay.dead_letters.redrive_group", "order_relay.dead_letters.open_topic")
# What an order service, the rules and the figures need: all but the worker and its clients.
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
        # What Alembic runs by itself.
        if not found.name.startswith("order_relay.fallback.sql.migrations")
        # What remembers redrives in a group, by aiokafka.
        and found.name not in REDRIVING
    ),
]
FAUST = {"faust", "mode", "aiokafka"}


# As the worker makes it of a consumer's settings.
CONSUMER_APP = (
    "import json, app; from faust.sensors.prometheus import FaustMetrics; "
    "from prometheus_client import CollectorRegistry; "
    "from order_relay.worker.consumer_app import consumer_app; "
    "from order_relay.settings.settings import load_settings; "
    "made = consumer_app(load_settings(), "
    "FaustMetrics.create(CollectorRegistry(), 'faust'))"
)


def test_agents_and_tables_are_ours() -> None:
    """Packages of these names are on PyPI too (openai-agents, PyTables): ours are imported."""
    for package in (agents, tables):
        assert Path(package.__file__ or "").parent.parent == ROOT


@pytest.mark.parametrize(
    ("session_ms", "heartbeat", "rebalance", "request_"),
    [("6000", 0.6, 60.0, 40.0), ("30000", 3.0, 60.0, 40.0), ("60000", 6.0, 120.0, 70.0)],
)
def test_times_of_the_group_follow_its_session(
    tmp_path: Path, session_ms: str, heartbeat: float, rebalance: float, request_: float
) -> None:
    """Ten heartbeats a session; rebalances and requests get longer, never shorter than usual."""
    result = run_python(
        f"{CONSUMER_APP}; c = made.conf; print(json.dumps([c.broker_session_timeout, "
        "c.broker_heartbeat_interval, c.broker_rebalance_timeout, c.broker_request_timeout]))",
        tmp_path,
        KAFKA_SESSION_TIMEOUT_MS=session_ms,
    )
    session = int(session_ms) / 1000
    assert json.loads(result.stdout) == [session, heartbeat, rebalance, request_]


def test_every_agent_is_registered(tmp_path: Path) -> None:
    """Each module in agents/ has its consumer or task in the app."""
    modules = {found.name for found in pkgutil.iter_modules(agents.__path__)}
    result = run_python(
        "import json, app; a = app.app; tasks = [work.__name__ for work in a.background]; "
        "print(json.dumps([[one.name for one in a.consumers], tasks]))",
        tmp_path,
    )

    assert result.returncode == 0, result.stderr
    registered, tasks = json.loads(result.stdout)
    assert registered == ["order_logging"]
    assert tasks == ["fallback_replay"]
    assert modules == {*registered, *tasks}


def test_every_table_is_registered(tmp_path: Path) -> None:
    """Each module in tables/ shows its table in the apps of consumers."""
    result = run_python(
        "import json, app; print(json.dumps([show.__module__ for show in app.app.on_consumer]))",
        tmp_path,
    )

    assert result.returncode == 0, result.stderr
    assert [found.name for found in pkgutil.iter_modules(tables.__path__)] == ["deliveries"]
    assert json.loads(result.stdout) == ["tables.deliveries"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("together", ["each", "all"])
def test_pure_modules_do_not_import_faust(together: str, tmp_path: Path) -> None:
    """The rules import and run without Faust and the Kafka consumer below it."""
    assert {
        "order_relay.delivery.dispatcher",
        "order_relay.kafka.producer",
        "order_relay.monitoring.health",
    } <= set(PURE)
    lines = [f"import {name}" for name in PURE]
    if together == "each":
        # One after another in one interpreter: the first that brings Faust in is named.
        check = "; assert not {0} & set(sys.modules), {1!r}"
        lines = [line + check.format(FAUST, line) for line in lines]
    else:
        lines.append(f"assert not {FAUST} & set(sys.modules)")

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
    """A wrong setting is no matter until the application is asked for; no folder is made."""
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
        f"{CONSUMER_APP}; conf = made.conf; print(json.dumps([conf.id, app.app.conf.web_port,"
        " conf.consumer_auto_offset_reset, [str(url) for url in conf.broker]]))",
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


def test_the_app_is_made_once(tmp_path: Path) -> None:
    """Whoever asks gets the same application; other names are refused as ever."""
    result = run_python(
        "import app\nassert app.app is app.app\nfrom app import app as again\n"
        "import sys\nassert again is sys.modules['app'].app\n"
        "assert not hasattr(sys.modules['app'], 'nonsense')",
        tmp_path,
    )

    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == [], "no data folder where there are no tables"
