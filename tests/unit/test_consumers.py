"""How files declare consumers, and the settings that these get."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from agents.order_logging import order_logging
from order_relay import Consumer, Delivery, HttpPost, InvalidConsumer
from order_relay.model.events import Events
from order_relay.settings import load_settings
from order_relay.settings.consumers import ConfiguredConsumer, choose, configure, misspelled
from order_relay.worker.discovery import find_consumers, import_modules

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("empty_environment")


class RefundPaid(msgspec.Struct):
    """Another event."""

    refundId: int  # noqa: N815


async def handle(event: Any, delivery: Delivery) -> None:
    """A handler."""


async def returns_later(event: Any) -> str:
    """An async function."""
    return ""


async def yields(event: Any, delivery: Delivery) -> Any:
    """A generator."""
    yield


class Called:
    """A callable object, with one argument or two."""

    async def __call__(self, event: Any, delivery: Delivery | None = None) -> Any:
        """Handle nothing."""
        yield


def consumer(name: str = "coupons", **options: Any) -> Consumer:
    """A consumer of the orders' topic."""
    given = {"topic": "order-paid-events", "group": f"{name}-group", "handler": handle, **options}
    return Consumer(name, **given)


def configured(*consumers: Consumer, **settings: Any) -> list[ConfiguredConsumer]:
    """Consumers with their settings."""
    loaded = load_settings(**settings)
    return choose(configure(consumers, loaded), loaded.consumers)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        *(
            (partial(consumer, name), f"consumer '{name}': a name has small letters, .*at most 63")
            for name in ["Coupons", "2coupons", "coupons-eu", "c" * 64]
        ),
        # It would read order_logging's topic, or join its group.
        (lambda: consumer(topic=None), "consumer coupons: topic=None must be a name"),
        (lambda: consumer(group=None), "consumer coupons: group=None must be a name"),
        (lambda: consumer(event=dict), "event=<class 'dict'> must be a msgspec.Struct class"),
        (lambda: consumer(event=RefundPaid(1)), "must be a msgspec.Struct class, or bytes"),
        (
            lambda: consumer(handler="http://coupons"),
            r"must be a function \(event, delivery\), or H",
        ),
        (lambda: consumer(handler=lambda event: None), r"must be a function \(event, delivery\)"),
        (lambda: consumer(key="orderId"), r"key= 'orderId' must be a function \(event\)"),
        (lambda: consumer(key=returns_later), "key= must be a function without async or yield"),
        (lambda: consumer(subject=lambda: 7), r"subject= must be a function \(event\)"),
        (lambda: consumer().handler(handle), "consumer coupons has a handler already"),
        # A class would be instantiated, and that would finish the record.
        (lambda: consumer(handler=HttpPost), r"must be a function .*, or HttpPost\(\.\.\.\)$"),
        # Their code would never run.
        (lambda: consumer(handler=yields), "its handler must be a function without yield"),
        (lambda: consumer(handler=Called()), "its handler must be a function without yield"),
        (lambda: consumer(key=Called()), "key= must be a function without async or yield"),
    ],
)
def test_a_wrong_declaration_is_one_line(make: Callable[[], Consumer], said: str) -> None:
    """It names the consumer, what is wrong and what is allowed."""
    with pytest.raises(InvalidConsumer, match=said) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_the_decorator_returns_the_function() -> None:
    """So it can be called and tested directly."""
    made = Consumer("coupons", topic="orders", group="coupons")
    assert made.handler(handle) is handle
    assert made.handled_by() is handle


def module(name: str, **values: Any) -> ModuleType:
    """A module with these names."""
    made = ModuleType(name)
    vars(made).update(values)
    return made


def test_consumers_are_found_in_modules() -> None:
    """order_logging first, then by name; one that two modules import counts once."""
    coupons = consumer()
    found = find_consumers(
        [
            module("agents.b", points=consumer("points"), coupons=coupons, other=7),
            module("agents.coupons", coupons=coupons),
            module("agents.order_logging", order_logging=order_logging),
        ]
    )
    assert [one.name for one in found] == ["order_logging", "coupons", "points"]


def test_two_of_one_name() -> None:
    """Both modules are named."""
    with pytest.raises(InvalidConsumer, match=r"declared twice, in agents\.a and in agents\.b"):
        find_consumers([module("agents.a", a=consumer()), module("agents.b", b=consumer())])


def test_one_without_a_handler() -> None:
    """It could not deliver its records."""
    with pytest.raises(InvalidConsumer, match="consumer coupons has no handler: give it handler="):
        find_consumers([module("agents.a", a=Consumer("coupons", topic="t", group="g"))])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import nowhere_to_be_found",
            "ModuleNotFoundError: No module named 'nowhere_to_be_found' ",
        ),
        ("\n\nraise SystemExit(0)", r"SystemExit: 0 \(line 3\)"),
        ("\nraise GeneratorExit", r"GeneratorExit:  \(line 2\)"),
        ("def (", "SyntaxError"),
        ("from order_relay import Consumer\nConsumer('A', topic='t', group='g')", "small letters"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(line 1\)"),
    ],
)
def test_a_file_that_does_not_import(source: str, said: str, tmp_path: Path) -> None:
    """One line that names the file, the error and the line; nothing starts without it."""
    (tmp_path / "broken.py").write_text(source)
    with pytest.raises(InvalidConsumer, match=said) as raised:
        import_modules(["agents"], str(tmp_path))
    assert str(tmp_path / "broken.py") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def forget_files() -> Iterator[None]:
    """Forget the files that a test has imported."""
    yield
    for name in [name for name in sys.modules if name.startswith("order_relay_consumers.")]:
        del sys.modules[name]


@pytest.mark.usefixtures("forget_files")
def test_files_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONSUMER_FOLDERS: every Python file but those that begin with an underscore."""
    (tmp_path / "extra.py").write_text(
        "from order_relay import Consumer, HttpPost\n"
        "extra = Consumer('extra', topic='t', group='g', handler=HttpPost('http://extra'))\n"
    )
    (tmp_path / "_helper.py").write_text("1 / 0")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "setup.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path / "elsewhere")  # an empty part names no folder, not even this one
    found = find_consumers(import_modules(["agents"], f" {tmp_path} , "))
    assert [one.name for one in found] == ["order_logging", "extra"]


@pytest.mark.usefixtures("forget_files")
@pytest.mark.parametrize(
    "source",
    [
        "listed = [made('coupons')]",
        "for name in ('coupons', 'points'):\n    one = made(name)",
        "one = made('coupons')\none = made('coupons')",
        "def declare():\n    made('coupons')\ndeclare()",
    ],
    ids=["list", "loop", "twice", "function"],
)
def test_one_that_would_not_run(source: str, tmp_path: Path) -> None:
    """Only a module's variables are looked at; a consumer elsewhere is told, not ignored."""
    (tmp_path / "some.py").write_text(
        "from order_relay import Consumer, HttpPost\n"
        "def made(name):\n"
        "    return Consumer(name, topic='t', group=name, handler=HttpPost('http://x'))\n" + source
    )
    with pytest.raises(InvalidConsumer, match="consumer coupons would not run: each Consumer"):
        import_modules(["agents"], str(tmp_path))
    # A consumer may be declared after the import.
    assert isinstance(consumer(), Consumer)


@pytest.mark.parametrize("folders", ["/nowhere", ",", " "])
def test_a_folder_that_does_not_exist(folders: str) -> None:
    """The line says what was given."""
    with pytest.raises(InvalidConsumer, match=f"CONSUMER_FOLDERS='{folders}' must be a folder"):
        import_modules(["agents"], folders)


@pytest.mark.usefixtures("forget_files")
def test_files_of_one_name(tmp_path: Path) -> None:
    """In two folders: annotations refer to the classes of their own file."""
    for number, kind in enumerate(["int", "str"]):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "orders.py").write_text(
            "from __future__ import annotations\n"
            "import msgspec\n"
            "from order_relay import Consumer, HttpPost\n"
            f"class Item(msgspec.Struct):\n    sku: {kind}\n"
            "class Paid(msgspec.Struct):\n    items: list[Item]\n"
            f"one = Consumer('one{number}', topic='t', group='g{number}', event=Paid,\n"
            "    handler=HttpPost('http://one'))\n"
        )
    found = find_consumers(import_modules([], f"{tmp_path}/int,{tmp_path}/str"))
    for consumer, sku in zip(found, (b"7", b'"A"'), strict=True):
        assert Events(consumer.event).decode(b'{"items":[{"sku":%s}]}' % sku)


def test_files_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that begin with an underscore are skipped as in folders: a draft does not run."""
    (tmp_path / "shop_agents").mkdir()
    for name in ("__init__", "coupons", "_draft"):
        (tmp_path / "shop_agents" / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    names = {one.__name__ for one in import_modules(["shop_agents"])}
    assert names == {"shop_agents", "shop_agents.coupons"}


def test_defaults_of_a_consumer_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of order_logging do not apply to it; those of the worker do."""
    monkeypatch.setenv("MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN", "s3cret")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092")
    ours, coupons = configured(order_logging, consumer())
    assert ours.settings.max_in_flight == 7
    assert coupons.settings.max_in_flight == 256
    assert coupons.settings.external_logger_token is None
    assert coupons.settings.consumer_retry_max_attempts == 3
    assert coupons.settings.kafka_bootstrap_servers == "kafka:9092"
    assert coupons.settings.dlq_topic == "order-paid-events.coupons.DLQ"
    assert coupons.settings.consumer_group_id == "coupons-group"
    assert (ours.target, coupons.target) == ("http://localhost:3000/logs", "handle")


def test_variables_win_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every argument has a variable; a secret may be in a file."""
    (tmp_path / "token").write_text("s3cret\n")
    expected = {
        "order_paid_topic": ("TOPIC", "refunds-2"),
        "consumer_group_id": ("GROUP", "refund-group-2"),
        "dlq_topic": ("DEAD_LETTER_TOPIC", "refunds.dead"),
        "max_in_flight": ("MAX_IN_FLIGHT", 64),
        "consumer_retry_max_attempts": ("RETRY_MAX_ATTEMPTS", 5),
        "consumer_retry_initial_interval_ms": ("RETRY_INITIAL_INTERVAL_MS", 50),
        "breaker_failure_threshold": ("BREAKER_FAILURE_THRESHOLD", 0),
        "deliveries_store": ("DELIVERIES_STORE", "off"),
        "external_logger_timeout_seconds": ("TIMEOUT_SECONDS", 3),
        "external_logger_url": ("URL", "https://refunds/v2?key=1"),
        "external_logger_batch_size": ("BATCH_SIZE", 10),
    }
    for variable, value in expected.values():
        monkeypatch.setenv(f"REFUNDS_{variable}", str(value))
    monkeypatch.setenv("REFUNDS_TOKEN_FILE", str(tmp_path / "token"))
    refunds = consumer(
        "refunds", handler=HttpPost("https://refunds/v1", batch_size=2), max_in_flight=8
    )
    (one,) = configured(refunds)
    assert {field: getattr(one.settings, field) for field in expected} == {
        field: value for field, (_, value) in expected.items()
    }
    assert one.settings.external_logger_token is not None
    assert one.settings.external_logger_token.get_secret_value() == "s3cret"
    assert "s3cret" in one.settings.secrets
    assert one.target == "https://refunds/v2"


def test_the_file_wins_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for order_logging, whose variables have no prefix. Values in code win."""
    ours = Consumer(
        "order_logging",
        topic="paid",
        group="ours",
        max_in_flight=9,
        handler=HttpPost("https://logs", connect_timeout_seconds=2),
    )
    monkeypatch.setenv("CONSUMER_GROUP_ID", "theirs")
    (one,) = configured(ours)
    settings = one.settings
    assert (settings.order_paid_topic, settings.consumer_group_id) == ("paid", "theirs")
    assert (settings.max_in_flight, settings.external_logger_url) == (9, "https://logs")
    assert settings.external_logger_connect_timeout_seconds == 2
    assert settings.dlq_topic == "order-paid-events.DLQ"
    (given_in_code,) = configured(ours, max_in_flight=5)
    assert given_in_code.settings.max_in_flight == 5


POSTS = partial(consumer, handler=HttpPost("http://x"))


@pytest.mark.parametrize(
    ("made", "variables", "said"),
    [
        (consumer, {"COUPONS_MAX_IN_FLIGHT": "0"},
         "COUPONS_MAX_IN_FLIGHT='0' must be greater than"),
        (partial(consumer, max_in_flight=0), {}, "COUPONS_MAX_IN_FLIGHT='?0'? must be greater"),
        (partial(consumer, topic="no spaces"), {}, "COUPONS_TOPIC="),
        (partial(consumer, group=b"coupons"), {}, "consumer coupons: group=b'coupons' must be a"),
        (partial(consumer, max_in_flight=True), {}, "max_in_flight=True must be a number or text"),
        (partial(consumer, handler=HttpPost()), {},
         "consumer coupons: HttpPost needs a url, or COUPONS_URL"),
        (partial(consumer, handler=HttpPost("ftp://x")), {}, "COUPONS_URL="),
        (consumer, {"CONSUMERS": "coupon"}, "CONSUMERS='coupon' must name consumers.*: coupons"),
        (consumer, {"CONSUMERS": ","}, "CONSUMERS=',' must name consumers"),
        (consumer, {"COUPONS_MAX_RATE": "inf"}, "COUPONS_MAX_RATE='inf' must be a finite number"),
        (POSTS, {"COUPONS_TOKEN_FILE": "/nowhere/token"},
         "COUPONS_TOKEN_FILE='/nowhere/token' cannot be used"),
        (POSTS, {"COUPONS_KEY_FILE": __file__}, "COUPONS_KEY_FILE='.*' needs COUPONS_CERT_FILE"),
        (partial(consumer, "order_logging", handler=HttpPost("http://x", key_file=Path(__file__))),
         {}, "EXTERNAL_LOGGER_KEY_FILE='.*' needs EXTERNAL_LOGGER_CERT_FILE"),
        (partial(POSTS, "database"), {}, "variable DATABASE_URL is a setting of the worker"),
        (partial(consumer, dead_letter_topic="order-paid-events"), {}, "must differ from|reads"),
        (partial(consumer, dead_letter_topic="order-paid-events"), {},
         "COUPONS_DEAD_LETTER_TOPIC='order-paid-events' must differ from COUPONS_TOPIC"),
        (partial(consumer, topic="x" * 239), {},
         "consumer coupons: COUPONS_DEAD_LETTER_TOPIC: the topic 'x+.coupons.DLQ' would have 251"),
        (partial(consumer, group="g" * 229), {},
         "consumer coupons: COUPONS_GROUP: the topic 'g+-deliveries-changelog' would have 250"),
        (partial(POSTS, "order_logging", max_in_flight=0), {}, "MAX_IN_FLIGHT='?0'? must be great"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line(
    made: Callable[[], Consumer],
    variables: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names the variable, and what is allowed."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConsumer, match=said) as raised:
        configured(made())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"group": "coupons-group"}, "have the same group 'coupons-group'"),
        (
            {"dead_letter_topic": "order-paid-events.coupons.DLQ"},
            "have the same dead-letter topic 'order-paid-events.coupons.DLQ'",
        ),
        ({"topic": "order-paid-events.coupons.DLQ"}, "which is the dead-letter topic of coupons"),
    ],
)
def test_consumers_that_clash(second: dict[str, Any], said: str) -> None:
    """Each needs its own group and dead-letter topic; also those that CONSUMERS leaves out."""
    with pytest.raises(InvalidConsumer, match=said):
        configured(consumer(), consumer("points", **second), consumers="points")


@pytest.mark.parametrize(
    ("name", "variable"),
    [("coupons_connect", "COUPONS_CONNECT_TIMEOUT_SECONDS"), ("coupons_dead_letter", "_TOPIC")],
)
def test_consumers_that_share_a_variable(name: str, variable: str) -> None:
    """It would set an option of both."""
    said = f"consumers coupons and {name} share the variable .*{variable}: give one of them another"
    with pytest.raises(InvalidConsumer, match=said):
        configured(consumer(), consumer(name, group="another"))


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("EXTERNAL_LOGER_URL", "EXTERNAL_LOGGER_URL"),
        ("EXTERNAL_LOGGER_TIMEOUT", "EXTERNAL_LOGGER_TIMEOUT_SECONDS"),
        ("MAX_INFLIGHT", "MAX_IN_FLIGHT"),
        ("API_TOKEN_FILES", "API_TOKEN_FILE"),
        ("COUPONS_MAX_INFLIGHT", "COUPONS_MAX_IN_FLIGHT"),
        # Other programs' variables.
        ("APP_TOKEN", None),
        ("KAFKA_HEAP_OPTS", None),
        ("EXTERNAL_LOGGER_PORT", None),
        ("EXTERNAL_LOGGER_SERVICE_HOST", None),
        # Settings.
        ("KAFKA_SASL_PASSWORD_FILE", None),
        ("COUPONS_MAX_IN_FLIGHT", None),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_variables_that_are_almost_settings(
    variable: str, meant: str | None, in_file: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A misspelled setting is found; other programs' variables are not."""
    coupons = configured(consumer())
    monkeypatch.chdir(tmp_path)
    if in_file:
        Path(".env").write_text(f"{variable}=1\n", encoding="utf-8")
    else:
        monkeypatch.setenv(variable, "1")

    assert misspelled(coupons) == ({} if meant is None else {variable: meant})


def test_a_setting_that_is_set_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A similar variable then belongs to another program."""
    monkeypatch.setenv("MAX_IN_FLIGHT", "2")
    monkeypatch.setenv("MAX_INFLIGHT", "1")

    assert misspelled(configured(consumer())) == {}


def test_consumers_of_one_worker() -> None:
    """CONSUMERS names those that run; all without it; none at all is an error."""
    three = consumer("a"), consumer("b"), consumer("c")
    assert [one.name for one in configured(*three)] == ["a", "b", "c"]
    assert [one.name for one in configured(*three, consumers="c, a")] == ["a", "c"]
    with pytest.raises(InvalidConsumer, match="no consumer is declared"):
        configured()


def test_importing_the_public_names_loads_no_client() -> None:
    """``order_relay`` is light: an order service, or a test of a handler, may import it."""
    clients = "{'faust', 'aiohttp', 'aiokafka', 'confluent_kafka', 'sqlalchemy', 'pydantic'}"
    code = f"import sys, order_relay; assert not {clients} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
