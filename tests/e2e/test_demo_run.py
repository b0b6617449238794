"""``python -m demo``, which ``make run`` starts, as a user types it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.child import ROOT, run
from tests.support.kafka.ports import free_ports
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

# Includes the worker's start, an outage of the logger, and orders retried until given up.
LIMIT_SECONDS = 240.0
# A user's settings for another program; the demo must ignore them.
USERS = {
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "CONSUMER_RETRY_MAX_ATTEMPTS": "many", "BROKER_URL": "kafka://127.0.0.1:1",
    "DATABASE_URL": "postgresql://127.0.0.1:1/orders",
}  # fmt: skip


def environment(folder: Path, **given: str) -> dict[str, str]:
    """The test's own environment with these, and temporary files in its own folder."""
    return {**os.environ, **USERS, "TMPDIR": str(folder), "COLUMNS": "80", **given}


class Demo:
    """The command, running; its ports are free ones."""

    def __init__(self, folder: Path, *arguments: str, **given: str) -> None:
        self.logger_port, self.web_port = free_ports(2)
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "demo", *arguments],
                cwd=ROOT,
                env=environment(
                    folder, LOGGER_PORT=str(self.logger_port), WEB_PORT=str(self.web_port), **given
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def figure(self, label: str) -> int:
        """A figure of the ledger."""
        found = re.search(rf"^ +{re.escape(label)} +([0-9,]+)", self.text(), re.MULTILINE)
        assert found, self.text()
        return int(found[1].replace(",", ""))

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        await eventually(lambda: self.process.poll() is not None, LIMIT_SECONDS, describe=self.text)
        assert self.process.returncode is not None
        return self.process.returncode

    def worker(self) -> int:
        """The process id of its worker, its only child; 0 while there is none."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return int(children.read_text().strip() or 0)

    def leaves_nothing(self) -> bool:
        """Whether both ports are free again."""
        for port in (self.logger_port, self.web_port):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return False
        return True


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Demo]]:
    """Commands that a test started; they always end with the test."""
    running: list[Demo] = []
    yield running
    for demo in running:
        demo.process.kill()
        demo.process.wait()


@pytest.mark.timeout(LIMIT_SECONDS + 30)
async def test_sixty_orders_are_all_accounted_for(tmp_path: Path, started: list[Demo]) -> None:
    """The ledger closes despite refusals, failures, and outages of the logger and of Kafka."""
    # Slow enough for some to be paid while Kafka is down, on any machine.
    demo = Demo(tmp_path, "--orders", "60", "--rate", "20")
    started.append(demo)
    status = await demo.ended()
    text = demo.text()
    assert status == 0, text
    assert "in memory" in text.splitlines()[0]
    paid = demo.figure("paid, in the shop's database")
    delivered = demo.figure("= delivered, the logger said 2xx")
    dead = demo.figure("+ dead-lettered")
    saved = demo.figure("+ saved for replay")
    assert (paid, saved) == (60, 0)
    assert paid == delivered + dead + saved
    assert "Kafka: 1 outage" in text
    # Orders paid meanwhile waited in the database.
    found = re.search(r"reached Kafka later: (\d+)", text)
    assert found
    assert int(found[1]) > 0
    # The seed has a broken message and a refusal among the first sixty orders, and an outage.
    assert dead >= 2
    assert "invalid_json 1" in text
    assert "full outages 1" in text
    assert "The ledger closes: 60 paid, 60 accounted for." in text
    assert demo.leaves_nothing()


@pytest.mark.timeout(LIMIT_SECONDS + 30)
async def test_each_of_two_consumers_has_a_ledger_that_closes(
    tmp_path: Path, started: list[Demo]
) -> None:
    """Each accounts for every order, with its own failures, outage and dead letters."""
    # The seed has a broken message and one refusal for each, and no order that always fails.
    arguments = ("--orders", "40", "--rate", "20", "--seed", "8")
    demo = Demo(tmp_path, *arguments, CONSUMERS="order_logging, notifications")
    started.append(demo)
    status = await demo.ended()
    text = demo.text()
    assert status == 0, text
    assert re.search(r"  notifications [1-9][0-9]*, dead-lettered [0-9]+ of [0-9]+", text)
    assert demo.figure("= delivered, the logger said 2xx") > 0
    assert "The ledger closes: 40 paid, 40 accounted for." in text
    in_kafka = demo.figure("orders in Kafka")
    handled = demo.figure("= handled")
    again = demo.figure("+ not handled again")
    found = re.search(r"\+ dead-lettered +(\d+)", text.partition("Ledger of notifications")[2])
    assert found
    assert int(found[1]) >= 2
    finished = handled + again + int(found[1])
    assert finished >= in_kafka == 40
    assert text.endswith(
        f"The ledger of notifications closes: {in_kafka} in Kafka, {finished} accounted for.\n"
    )
    assert demo.leaves_nothing()


def try_commands(text: str, folder: Path) -> None:
    """Run the commands that the demo prints for other terminals in a clean shell."""
    # Where the project is not installed as a package, it has no script.
    script = folder / "order-relay"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m order_relay "$@"\n')
    script.chmod(0o755)
    assert "The console: http://127.0.0.1:" in text
    commands = re.findall(r"^  (\. .+|order-relay .+)$", text, re.MULTILINE)
    names = [command.split()[1:3] for command in commands if command.startswith("order-relay")]
    assert [name[0] for name in names] == ["order", "dlq", "dlq", "audit", "status"]
    assert [name[1] for name in names[1:3]] == ["list", "redrive"]
    # A redriven letter may be given up again; then the status is 1.
    assert commands[-1] == "order-relay status"
    commands[-1] += " || test $? = 1"
    own = {"PATH": f"{os.environ['PATH']}:{folder}", "HOME": os.environ["HOME"], "PYTHONPATH": ""}
    ended = run("/bin/sh", "-ec", "\n".join(commands), folder=folder, **own, **USERS)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^orderId +100001 *$", ended.stdout, re.MULTILINE), ended.stdout
    assert "The ledger closes" in ended.stdout
    assert re.search(r"^http://127\.0\.0\.1:\d+ +order_logging ", ended.stdout, re.MULTILINE)


@pytest.mark.timeout(LIMIT_SECONDS + 30)
async def test_ctrl_c_ends_everything_and_prints_the_ledger(
    tmp_path: Path, started: list[Demo]
) -> None:
    """Without --orders it runs until Ctrl-C, which also ends worker, logger and shop."""
    demo = Demo(tmp_path)
    started.append(demo)
    # Wait for a dead letter to show.
    await eventually(
        lambda: re.search(r"  delivered [1-9].+invalid_json", demo.text()),
        LIMIT_SECONDS,
        describe=demo.text,
    )
    await asyncio.to_thread(try_commands, demo.text(), tmp_path)
    demo.process.send_signal(signal.SIGINT)
    assert await demo.ended() == 0, demo.text()
    text = demo.text()
    assert "Traceback" not in text
    assert "Ledger after" in text
    paid = demo.figure("paid, in the shop's database")
    assert paid >= demo.figure("= delivered, the logger said 2xx") > 0
    assert demo.leaves_nothing()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in Linux's /proc")
@pytest.mark.timeout(LIMIT_SECONDS + 30)
async def test_a_worker_that_dies_is_told_with_the_end_of_its_log(
    tmp_path: Path, started: list[Demo]
) -> None:
    """When the worker ends, the command says so, shows its log's end, and fails."""
    demo = Demo(tmp_path)
    started.append(demo)
    (log,) = await eventually(lambda: list(tmp_path.glob("order-relay-*/worker.log")))
    await eventually(lambda: "Starting..." in log.read_text(), LIMIT_SECONDS)
    os.kill(demo.worker(), signal.SIGKILL)
    assert await demo.ended() == 1
    text = demo.text()
    assert "The worker ended unexpectedly with status -9." in text
    assert "Starting..." in text
    assert "Traceback" not in text
    assert demo.leaves_nothing()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in Linux's /proc")
@pytest.mark.timeout(LIMIT_SECONDS + 30)
async def test_it_gives_up_when_nothing_moves_and_names_what_is_missing(
    tmp_path: Path, started: list[Demo]
) -> None:
    """With a frozen worker the ledger does not close: it lists missing ids; the status is 1."""
    demo = Demo(tmp_path, "--orders", "60", "--rate", "20", "--give-up-after", "4")
    started.append(demo)
    await eventually(
        lambda: re.search(r"  delivered [1-9]", demo.text()), LIMIT_SECONDS, describe=demo.text
    )
    worker = demo.worker()
    os.kill(worker, signal.SIGSTOP)
    await eventually(lambda: "worker finishing" in demo.text(), 60.0, describe=demo.text)
    # Ctrl-C skips the wait for the worker's deadline.
    demo.process.send_signal(signal.SIGINT)
    assert await demo.ended() == 1, demo.text()
    text = demo.text()
    assert "Given up: nothing has moved for 4 s." in text
    assert "The worker was killed" in text
    missing = demo.figure("NOT ACCOUNTED FOR")
    assert missing > 0
    assert len(re.findall(r"^  not accounted for: [-0-9a-f]{36}$", text, re.MULTILINE)) == missing
    assert f"THE LEDGER DOES NOT CLOSE: 60 paid, {60 - missing} accounted for." in text
    assert demo.leaves_nothing()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the worker on Linux only")
@pytest.mark.timeout(LIMIT_SECONDS + 30)
async def test_even_killed_it_leaves_no_worker(tmp_path: Path, started: list[Demo]) -> None:
    """SIGKILL prevents any clean-up; the worker still ends."""
    demo = Demo(tmp_path)
    started.append(demo)
    await eventually(
        lambda: list(tmp_path.glob("order-relay-*/worker.log")), LIMIT_SECONDS, demo.text
    )
    worker = await eventually(demo.worker)
    demo.process.kill()
    await eventually(lambda: not Path(f"/proc/{worker}").exists())


def ended(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run the command with five orders to its end, on free ports unless some are given."""
    ports = dict(zip(("LOGGER_PORT", "WEB_PORT"), map(str, free_ports(2)), strict=True))
    return run("-m", "demo", "--orders", "5", folder=ROOT, **environment(folder, **(ports | given)))


@pytest.mark.parametrize("variable", ["LOGGER_PORT", "WEB_PORT"])
def test_a_port_in_use_gets_one_line(tmp_path: Path, variable: str) -> None:
    """The line names the port and how to choose another; no file is left."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = ended(tmp_path, **{variable: str(port)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"port {port}, needed for " in done.stderr
    assert "Address already in use" in done.stderr
    assert f"choose another with {variable}" in done.stderr
    assert list(tmp_path.iterdir()) == []
