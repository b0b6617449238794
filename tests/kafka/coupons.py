"""A second consumer of a scene's topic: a function whose behaviour is set by a file."""

import asyncio
from pathlib import Path
from typing import Any, Self

from tests.kafka.commit_watch import LIMIT_SECONDS, CommitWatch, Place
from tests.kafka.scene import Scene
from tests.support.stage import Stage
from tests.support.waiting import eventually

BAD = "bad-coupon"
"""The key of an order that the function rejects, and the logger takes."""
COUPONS = f'''
import asyncio
import time
from pathlib import Path

from order_relay import Consumer, Delivery, OrderPaid, Reject

HERE = Path(__file__).parent
coupons = Consumer("coupons", topic="orders", group="coupons", event=OrderPaid)


@coupons.handler
async def issue(order: OrderPaid, delivery: Delivery) -> None:
    """Do as the file beside this one says, and write down what was handled."""
    mood = (HERE / "mood").read_text()
    if mood == "raise":
        raise RuntimeError("no coupons")
    if mood == "hang":
        await asyncio.Event().wait()
    if mood == "block" and order.orderId % 100 == 0:
        time.sleep(2.0)
    key = (delivery.key or b"").decode()
    if key == "{BAD}":
        raise Reject("no such user")
    with (HERE / "handled").open("a") as handled:
        handled.write(f"{{delivery.idempotency_key}} {{key}} {{order.orderId}}\\n")
'''


class Coupons:
    """A function consumer of a scene's topic: its file, what it has handled, what it commits.

    Attributes:
        stage: The scene's, with this consumer's group and dead-letter topic.
        settings: What a worker needs to run it beside order_logging.
        commits: Its commits, checked against what it has handled.
        rejected: Places of records that it rejects.
    """

    def __init__(self, scene: Scene, folder: Path) -> None:
        of_scene = scene.stage
        self.stage = Stage(
            of_scene.bootstrap_servers,
            of_scene.topic,
            f"{of_scene.topic}.coupons.DLQ",
            f"{of_scene.group_id}-coupons",
            declare_topics=True,
        )
        self.settings: dict[str, Any] = {
            "consumer_folders": folder,
            "coupons_topic": self.stage.topic,
            "coupons_group": self.stage.group_id,
            # No record is given up; a hanging call ends soon.
            "coupons_retry_max_attempts": 1000,
            "coupons_retry_initial_interval_ms": 50,
            "coupons_retry_max_interval_ms": 200,
            "coupons_breaker_probe_interval_seconds": 0.2,
            "coupons_timeout_seconds": 5,
        }
        self.commits = CommitWatch(self.stage, self.is_finished)
        self.rejected: set[Place] = set()
        self._folder = folder
        self._handled: dict[str, tuple[str, int]] = {}
        self._read_to = 0

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._write)
        await self.commits.__aenter__()
        return self

    def _write(self) -> None:
        self._folder.mkdir()
        (self._folder / "coupons.py").write_text(COUPONS, encoding="utf-8")
        (self._folder / "handled").touch()
        self.be("well")

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.commits.__aexit__()
        if error is None:
            self.commits.check()
            assert not self.commits.steps_back, self.commits.steps_back[:10]

    def be(self, mood: str) -> None:
        """Set the handler's behaviour from now on."""
        beside = self._folder / "mood.new"
        beside.write_text(mood, encoding="utf-8")
        beside.replace(self._folder / "mood")

    @property
    def handled(self) -> dict[str, tuple[str, int]]:
        """Key and order id by event id, in the order of the first calls that returned."""
        with (self._folder / "handled").open(encoding="utf-8") as lines:
            lines.seek(self._read_to)
            while (line := lines.readline()).endswith("\n"):
                self._read_to = lines.tell()
                event, key, order = line.split()
                self._handled.setdefault(event, (key, int(order)))
        return self._handled

    def is_finished(self, place: Place) -> bool:
        """Whether the record at a place was handled, or is rejected."""
        event_id = f"{self.stage.topic}-{place[0]}-{place[1]}"
        return place in self.rejected or event_id in self.handled

    async def until_handled(self, scene: Scene) -> None:
        """Wait until every published order is handled, or rejected."""
        await eventually(
            lambda: len(self.handled) + len(self.rejected) >= scene.load.produced,
            LIMIT_SECONDS,
            lambda: len(self.handled),
        )

    async def settle_and_check(self, scene: Scene) -> None:
        """Wait until all is handled and committed; check loss, order and dead letters."""
        await self.until_handled(scene)
        await self.commits.until_all_committed()
        rejected = {f"{self.stage.topic}-{p}-{offset}" for p, offset in self.rejected}
        assert set(self.handled) == scene.load.event_ids - rejected
        assert self.keys_out_of_order() == {}
        assert {row.source for row in await self.stage.dead_letters()} == self.rejected

    def keys_out_of_order(self) -> dict[str, list[int]]:
        """Order ids, in the order of first handling, of the keys whose order is wrong."""
        by_key: dict[str, list[int]] = {}
        for key, order in self.handled.values():
            by_key.setdefault(key, []).append(order)
        return {key: ids for key, ids in by_key.items() if ids != sorted(ids)}
