"""``order-relay`` itself: what it imports, the application that ``-A`` names, completion."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.child import ROOT, run
from tests.support.publish_command import Commands, nothing_in

pytestmark = pytest.mark.e2e

CLIENTS = {"faust", "mode", "aiokafka", "confluent_kafka", "sqlalchemy", "aiohttp"}
OF_MODULES = """
import json, sys
from order_relay.cli.main import main

sys.argv[1:] = {arguments}
try:
    main()
finally:
    loaded = [name.partition(".")[0] for name in sys.modules]
    print(json.dumps(sorted({{*loaded}})), file=sys.stderr)
"""
OWN = """
from order_relay.worker import create_app

app = create_app()
app.import_consumers("consumers")
"""
CONSUMER = """
from order_relay import Consumer

points = Consumer("points", topic="orders", group="points", event=bytes)


@points.handler
async def collect(order, delivery): ...
"""


def modules_after(folder: Path, *arguments: str, status: int = 0) -> set[str]:
    """The packages that a command has imported when it ends."""
    ended = run("-c", OF_MODULES.format(arguments=list(arguments)), folder=folder)
    assert ended.returncode == status, ended.stderr
    return set(json.loads(ended.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments", [("--help",), (), ("--version",), ("dlq",), ("completion", "zsh"), ("none",)]
)
def test_help_imports_no_command(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """It stays fast: no client library and no package for settings or tables is imported."""
    loaded = modules_after(tmp_path, *arguments, status=2 if arguments == ("none",) else 0)
    assert not (CLIENTS | {"rich", "pydantic", "app", "agents"}) & loaded
    assert nothing_in(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "missing.jsonl"),
        ("fallback", "stats"),
        ("order", "a\tb"),
        ("status", "--url", "http://127.0.0.1:1"),
    ],
)
def test_commands_that_need_settings_alone(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """They import neither Faust nor the application."""
    loaded = modules_after(tmp_path, *arguments, status=1 if arguments[0] == "fallback" else 2)
    assert not {"faust", "mode", "aiokafka", "app", "agents", "tables"} & loaded


async def test_names_of_commands_are_completed(tmp_path: Path) -> None:
    """The shell script calls the command, which imports little for it."""
    commands = Commands(tmp_path)
    for shell in ("bash", "zsh", "fish"):
        script = (await commands("completion", shell)).out
        assert f"_ORDER_RELAY_COMPLETE={shell}_complete" in script
    commands.environment |= {"COMP_WORDS": "order-relay dlq re", "COMP_CWORD": "2"}
    commands.environment["_ORDER_RELAY_COMPLETE"] = "bash_complete"
    assert (await commands.in_new_interpreter()).out == "plain,redrive\n"


async def test_an_application_named_by_its_module(tmp_path: Path) -> None:
    """``-A`` names a module of the current folder; commands work on its consumers."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "module.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "consumers.py").write_text(CONSUMER, encoding="utf-8")
    commands = Commands(tmp_path)
    for name in ("own.module", "own.module:app"):
        other = ("-A", name, "dlq", "list", "--consumer", "other")
        assert (
            await commands.refused(*other) == "Error: --consumer 'other' must name one of: points"
        )
    line = (await commands("-A", "own.module", "dlq", "list", statuses=(1,))).only_line
    assert "Kafka cannot be reached" in line
    helped = await commands.in_new_interpreter("-A", "own.module", "worker", "--help")
    assert "--web-port" in helped.out


async def test_an_application_that_is_missing_or_broken_is_one_line(tmp_path: Path) -> None:
    """It names the application, and how to choose another; the status is 2."""
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    (tmp_path / "other.py").write_text("app = 1", encoding="utf-8")
    commands = Commands(tmp_path)
    told = {
        "missing": "No module named 'missing'", "broken": "ZeroDivisionError",
        "other": "is not an application of the relay", "": "cannot be imported",
    }  # fmt: skip
    for name, said in told.items():
        for command in (("dlq", "list"), ("check",)):
            assert said in await commands.refused("-A", name, *command)
    assert "'missing'; run this in its folder" in await commands.refused("-A", "missing", "worker")


def test_old_commands_of_faust_name_the_new_ones(tmp_path: Path) -> None:
    """They print one line, with any arguments; the status is 2."""
    moved = {
        "dlq-list": "dlq list", "fallback-requeue": "fallback requeue", "publish": "publish",
        "order-status": "order",
    }  # fmt: skip
    for old, new in moved.items():
        ended = run("-m", "faust", "-A", "app", old, "--all", "x", folder=tmp_path)
        assert ended.stderr == f"faust -A app {old} is now: order-relay {new}\n"
        assert (ended.returncode, ended.stdout) == (2, "")
    assert nothing_in(tmp_path)


def test_the_script_of_faust_finds_the_consumers_of_its_folder(tmp_path: Path) -> None:
    """``.venv/bin/faust`` finds them without the folder in PYTHONPATH."""
    (tmp_path / "order_relay").symlink_to(ROOT / "order_relay")
    faust = Path(sys.executable).with_name("faust")
    ended = run(faust, "-A", "app", "worker", PYTHONPATH=tmp_path, CONSUMERS="other")
    assert "CONSUMERS='other'" in ended.stderr
    assert "of these: order_logging" in ended.stderr
    assert ended.returncode == 1


@pytest.mark.parametrize("argument", ["--help", "--version"])
async def test_help_into_a_full_disk(tmp_path: Path, argument: str) -> None:
    """It is told in one line."""
    (line,) = await Commands(tmp_path).into_a_full_disk(argument)
    assert line == "Error: No space left on device"


def test_a_folder_that_was_deleted(tmp_path: Path) -> None:
    """One line, too."""
    code = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
    ended = run("-c", f"{code}from order_relay.cli.main import main; main()", folder=tmp_path)
    said = "Error: the current folder cannot be used: No such file or directory\n"
    assert (ended.returncode, ended.stderr) == (1, said)


async def test_a_worker_of_something_else(tmp_path: Path) -> None:
    """Its application must be one of the relay."""
    (tmp_path / "other.py").write_text("app = 1\n")
    line = await Commands(tmp_path).refused("-A", "other", "worker")
    assert "-A other: its attribute app is not an application of the relay" in line
