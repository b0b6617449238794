"""A mistake in a consumer's file ends the start with one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import app

ROOT = Path(app.__file__).parents[1]
# Each start is a process of its own; what takes long to import is there already.
STARTS = """
import json, os, sys
import app
import order_relay.worker.relay_app, order_relay.cli
for case, environment in json.loads(sys.argv[1]).items():
    if (child := os.fork()) == 0:
        os.chdir(case)
        os.environ.update(environment)
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT), 2)
        app.app
        os._exit(0)
    with open(f"{case}/status", "w") as status:
        status.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
DECLARED = """
from order_relay import Consumer, OrderPaid
{name} = Consumer("{name}", topic="orders", group="{group}", event=OrderPaid{more})
"""
HANDLER = """
@{name}.handler
async def handle(order, delivery): ...
"""


def consumer(
    name: str = "coupons", group: str = "coupon-group", more: str = "", handler: str = HANDLER
) -> str:
    """A consumer's file."""
    return (DECLARED + handler).format(name=name, group=group, more=more)


AGENT = """
from app import app

@app.agent(app.topic("orders"))
async def points(orders): ...
"""
ONE_ARGUMENT = """
@coupons.handler
async def handle(order): ...
"""
LETTERS = ', dead_letter_topic="letters"'


class Mistake(NamedTuple):
    """Files of a folder, and what is said of them."""

    files: dict[str, str]
    said: str
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed


MISTAKES = {
    "no_such_import": Mistake(
        {"coupons.py": "\nimport no_such_module"},
        "coupons.py cannot be imported: ModuleNotFoundError: No module named 'no_such_module' "
        "(line 2)",
    ),
    "ends": Mistake({"coupons.py": "raise SystemExit(0)"}, "cannot be imported: SystemExit: 0"),
    "no_handler": Mistake({"a.py": consumer(handler="")}, "consumer coupons has no handler"),
    "wrong_handler": Mistake(
        {"a.py": consumer(handler=ONE_ARGUMENT)},
        "a.py: consumer coupons: its handler must be a function (event, delivery), not "
        "handle(order)",
    ),
    "one_name": Mistake(
        {"a.py": consumer(), "b.py": consumer(group="b")}, "consumer coupons is declared twice"
    ),
    "one_group": Mistake(
        {"a.py": consumer(), "b.py": consumer("points")},
        "consumers coupons and points have the same group 'coupon-group': each needs its own",
    ),
    "one_topic_of_letters": Mistake(
        {"a.py": consumer(more=LETTERS), "b.py": consumer("points", "b", more=LETTERS)},
        "consumers coupons and points have the same dead-letter topic 'letters'",
    ),
    "agent": Mistake({"points.py": AGENT}, "the Faust agent 'points' cannot run here"),
    "unknown": Mistake(
        {"a.py": consumer()},
        "CONSUMERS='cupons' must name consumers, separated by commas, of these: order_logging, "
        "coupons",
        {"CONSUMERS": "cupons"},
    ),
}
JSON = "json"


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each case with what its start said, and its exit status."""
    folder = tmp_path_factory.mktemp("starts")
    cases = {}
    for name, mistake in MISTAKES.items():
        starts = [(name, "text"), (JSON, "json")] if name == "no_handler" else [(name, "text")]
        for case, log_format in starts:
            (folder / case / "consumers").mkdir(parents=True)
            for file, text in mistake.files.items():
                (folder / case / "consumers" / file).write_text(text, encoding="utf-8")
            cases[str(folder / case)] = {
                "CONSUMER_FOLDERS": "consumers", "LOG_FORMAT": log_format, **mistake.environment,
            }  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", STARTS, json.dumps(cases)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        timeout=120,
        check=True,
    )
    return folder


def said(starts: Path, case: str) -> tuple[str, str]:
    """The exit status, and the one line on stderr."""
    (line,) = (starts / case / "said").read_text(encoding="utf-8").splitlines()
    return (starts / case / "status").read_text(), line


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_consumer_ends_the_start_with_one_line(name: str, starts: Path) -> None:
    """It says what is wrong and where; the status is 1, and there is no stack trace."""
    status, line = said(starts, name)
    assert MISTAKES[name].said in line
    assert status == "1"


def test_the_line_is_json_where_the_log_is(starts: Path) -> None:
    """Its message is the same line."""
    status, line = said(starts, JSON)
    assert MISTAKES["no_handler"].said in json.loads(line)["message"]
    assert status == "1"
