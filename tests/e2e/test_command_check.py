"""``order-relay check``: lists what is there and what is missing, and changes nothing."""

import asyncio
import sqlite3
import ssl
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from order_relay.fallback.sql.migrate import migrate
from tests.support.dead_letter_commands import relay_on
from tests.support.orders import orders
from tests.support.publish_command import Commands, nothing_in
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import consumers_in

pytestmark = pytest.mark.e2e

FUNCTION = """
from order_relay import Consumer

points = Consumer("points", topic="orders", group="points", event=bytes)


@points.handler
async def collect(order, delivery): ...
"""


async def findings(commands: Commands, *, status: int) -> dict[str, tuple[str, str]]:
    """Each part with its result and text."""
    told = (await commands("check", "--json", statuses=(status,))).objects
    return {one["part"]: (one["result"], one["text"]) for one in told}


async def test_everything_that_a_worker_needs(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """A line for each part: ok, or warn where a worker makes what is missing; nothing is posted."""
    folder = consumers_in(tmp_path, "points.py", FUNCTION)
    for topic in (stage.topic, stage.dlq_topic):
        await replace(stage, topic=topic).publish(orders(1))
    commands = relay_on(
        stage, tmp_path, external_logger_url=sink.url, topic_partitions=1, consumer_folders=folder,
        kafka_declare_topics="true", points_topic=stage.topic,
    )  # fmt: skip
    found = await findings(commands, status=0)
    assert found["settings"] == ("ok", "the consumers are order_logging, points")
    assert found["kafka"][0] == "ok"
    assert stage.bootstrap_servers in found["kafka"][1]
    assert "brokers at" in found["kafka"][1]
    for topic in (stage.topic, stage.dlq_topic):
        result, text = found[f"topic {topic}"]
        assert result in {"ok", "warn"}
        assert "partitions, replication " in text
    missing = ("warn", "it does not exist, a worker makes it when it starts")
    assert found[f"topic {stage.topic}.points.DLQ"] == missing
    assert found["database"][0] == "warn"
    assert found["target of order_logging"][0] == "ok"
    assert found["target of points"] == ("ok", "the function collect, nothing to connect to")
    assert not commands.database.exists()
    assert sink.requests == []
    await migrate(commands.database_url)
    lines = (await commands.in_new_interpreter("check")).out.splitlines()
    assert len(lines) == len(found)
    (database,) = [line for line in lines if " database: " in line or "database: " in line[:16]]
    assert database.startswith(
        f"ok   database: DATABASE_URL={commands.database_url} is at revision"
    )
    again = await findings(commands, status=0)
    assert again[f"topic {stage.topic}.points.DLQ"] == missing


async def test_a_consumer_that_does_not_exist(stage: Stage, tmp_path: Path) -> None:
    """The line names it, and Kafka and the database have their lines."""
    found = await findings(relay_on(stage, tmp_path, consumers="nix"), status=1)
    assert [(part, result) for part, (result, _) in found.items()] == [
        ("consumers", "FAIL"), ("kafka", "ok"), ("database", "warn"),
    ]  # fmt: skip
    assert "CONSUMERS='nix' must name consumers" in found["consumers"][1]


async def test_a_misspelled_setting(stage: Stage, sink: ScriptedSink, tmp_path: Path) -> None:
    """A warning names the setting that is probably meant."""
    commands = relay_on(stage, tmp_path, external_logger_url=sink.url, data_dirs="data")
    told = (await commands("check", "--json", statuses=(0, 1))).objects

    said = {"result": "warn", "part": "settings", "text": "DATA_DIRS is unknown, perhaps DATA_DIR"}
    assert said in told


async def test_what_fails_hides_nothing_else(tmp_path: Path) -> None:
    """Kafka, the database and the target are down: each has its line, and the status is 1."""
    commands = Commands(
        tmp_path,
        external_logger_url="http://127.0.0.1:1/logs",
        database_url="postgresql://relay:hush@127.0.0.1:1/orders",
    )
    found = await findings(commands, status=1)
    assert [result for result, _ in found.values()] == ["ok", "FAIL", "FAIL", "FAIL"]
    assert "KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:1" in found["kafka"][1]
    assert "relay:***@127.0.0.1:1/orders" in found["database"][1]
    assert "no connection to 127.0.0.1:1" in found["target of order_logging"][1]
    assert nothing_in(tmp_path)


async def test_a_database_that_takes_no_rows(tmp_path: Path) -> None:
    """A database that answers is not enough: it must have the table and accept writes."""
    commands = Commands(tmp_path, external_logger_url="http://127.0.0.1:1/logs")
    await migrate(commands.database_url)
    assert (await findings(commands, status=1))["database"][0] == "ok"
    with closing(sqlite3.connect(commands.database)) as database:
        database.execute(
            "CREATE TRIGGER standby BEFORE UPDATE ON kafka_fallback_version"
            " BEGIN SELECT RAISE(ABORT, 'attempt to write a readonly database'); END"
        )
        result, text = (await findings(commands, status=1))["database"]
        assert (result, text.startswith("DATABASE_URL=")) == ("FAIL", True)
        assert text.endswith("attempt to write a readonly database")
        database.execute("DROP TABLE kafka_fallback_message")
        result, text = (await findings(commands, status=1))["database"]
        assert (result, text.split()[-4:-1]) == ("FAIL", ["no", "such", "table:"])


async def test_a_database_that_a_worker_could_not_make(tmp_path: Path) -> None:
    """The check creates the table and rolls back; a failure would stop a first start, too."""
    commands = Commands(tmp_path, external_logger_url="http://127.0.0.1:1/logs")
    with closing(sqlite3.connect(commands.database)) as database:
        assert (await findings(commands, status=1))["database"][0] == "warn"
        assert database.execute("SELECT * FROM sqlite_master").fetchall() == []
        database.execute("CREATE TABLE kafka_fallback_message (id)")
        result, text = (await findings(commands, status=1))["database"]
        assert (result, text.endswith("table kafka_fallback_message already exists")) == (
            "FAIL",
            True,
        )
    commands.environment["DATABASE_URL"] = f"sqlite:///{tmp_path}/none/relay.db"
    result, text = (await findings(commands, status=1))["database"]
    assert result == "FAIL"
    assert text.endswith("cannot be made: the folder does not exist or may not be written")
    assert not (tmp_path / "none").exists()


async def test_a_target_with_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    """TLS is tried as a worker tries it: the authority must be known."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with ScriptedSink(tls=context) as sink:
        commands = Commands(tmp_path, external_logger_url=sink.url)
        result, text = (await findings(commands, status=1))["target of order_logging"]
        assert result == "FAIL"
        assert "certificate verify failed" in text
        file = tmp_path / "authority.pem"
        await asyncio.to_thread(authority.cert_pem.write_to_path, str(file))
        commands.environment["EXTERNAL_LOGGER_CA_FILE"] = str(file)
        result, _ = (await findings(commands, status=1))["target of order_logging"]
        assert result == "ok"
        assert sink.requests == []


async def test_a_wrong_setting_ends_the_check(tmp_path: Path) -> None:
    """Without valid settings nothing else can be checked."""
    wrong = Commands(tmp_path, max_in_flight=0)
    (only,) = (await wrong("check", "--json", statuses=(1,))).objects
    assert (only["result"], only["part"]) == ("FAIL", "settings")
    assert "MAX_IN_FLIGHT='0'" in only["text"]
