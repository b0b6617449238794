"""Two consumers in two workers on real Kafka, with faults: counts lost records.

    python -m benchmarks.isolation --minutes 30

Orders are published all the time. Every few seconds one of the consumers has a fault: its function
raises, hangs or blocks the event loop, its logger is down, or a worker is killed and another takes
over. In the end all faults are removed, and the records are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.kafka.coupons import Coupons
from tests.kafka.scene import Scene
from tests.support.kafka.cluster import RealKafka
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

RATE = 100
KEYS = 500
PAUSE_SECONDS = (5.0, 20.0)
SETTLE_SECONDS = 300.0
MOODS = ("raise", "hang", "block", "well")


async def run(minutes: float, seed: int) -> int:
    """Run it; return how many records were lost."""
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    with RealKafka() as kafka, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            Scene(kafka, folder / "scene", keys=KEYS) as scene,
            Coupons(scene, folder / "coupons") as coupons,
        ):
            # An outage may begin with too few attempts to open the breaker: do not give up.
            settings = coupons.settings | {"consumer_retry_max_attempts": 1000}
            workers = [await scene.ready_worker(one, **settings) for one in ("w0", "w1")]
            scene.load.flow(RATE)
            ends = time.monotonic() + 60 * minutes
            while time.monotonic() < ends:
                await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))  # the last fault takes effect
                done[await harm(scene, coupons, workers, chance)] += 1
                print_progress(scene, coupons, ends - time.monotonic())
            coupons.be("well")
            await scene.sink.up()
            await scene.load.settle()
            return await count_lost(scene, coupons, done)


async def harm(
    scene: Scene, coupons: Coupons, workers: list[WorkerProcess], chance: random.Random
) -> str:
    """Cause a fault of one consumer; returns its name."""
    what = chance.choice([*MOODS, "logger down", "logger up", "kill"])
    if what in MOODS:
        coupons.be(what)
    elif what == "logger down":
        await scene.sink.down()
    elif what == "logger up":
        await scene.sink.up()
    else:
        chance.choice(workers).kill9()
        for worker in workers:
            if not worker.running:
                worker.start()
    return what


def print_progress(scene: Scene, coupons: Coupons, left: float) -> None:
    """Print the progress."""
    print(
        f"{left:5.0f} s left: {scene.load.produced:,} orders, {len(scene.accepted):,} logged, "
        f"{len(coupons.handled):,} coupons",
        flush=True,
    )


async def count_lost(scene: Scene, coupons: Coupons, done: Counter[str]) -> int:
    """Wait until both have everything, print the counts, and return how many are lost."""
    letters = {"order_logging": set[str](), "coupons": set[str]()}
    finished = {"order_logging": lambda: scene.accepted, "coupons": lambda: set(coupons.handled)}
    stages = {"order_logging": scene.stage, "coupons": coupons.stage}

    async def lost(name: str) -> set[str]:
        rows = await stages[name].dead_letters()
        letters[name] = {f"{scene.stage.topic}-{p}-{o}" for p, o in (row.source for row in rows)}
        return scene.load.event_ids - finished[name]() - letters[name]

    async def all_there() -> bool:
        return not any([await lost(name) for name in stages])

    try:
        await eventually(all_there, SETTLE_SECONDS, "both have everything")
        await scene.until_all_committed()
        await coupons.commits.until_all_committed()
    except TimeoutError as error:
        print(error)
    print(f"done: {dict(sorted(done.items()))}")
    total = 0
    for name, commits, wrong in (
        ("order_logging", scene.commits, scene.keys_out_of_order()),
        ("coupons", coupons.commits, coupons.keys_out_of_order()),
    ):
        missing = await lost(name)
        total += len(missing)
        print(
            f"{name}: published={len(scene.load.event_ids)} finished={len(finished[name]())} "
            f"dead_lettered={len(letters[name])} lost={len(missing)} "
            f"keys_out_of_order={len(wrong)} commits_too_early={len(commits.faults)}"
        )
    print(f"sent again to the logger: {sum(scene.repeats().values())}")
    return total


def main() -> int:
    """Read the options and run; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description="What two consumers of a worker do to each other.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    print(f"seed={given.seed}", flush=True)
    return 1 if asyncio.run(run(given.minutes, given.seed)) else 0


if __name__ == "__main__":
    sys.exit(main())
