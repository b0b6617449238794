"""The console: all that its files name exists; and a consumer over all of its workers."""

import re
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from yarl import URL

from order_relay.web import console
from order_relay.web.console.cluster import Cluster, ConsumerView, WorkerAnswer, span
from order_relay.web.console.pages import chart, shown
from tests.support.standing_health import served_consumer

ROOT = Path(__file__).parents[2]
TEMPLATES = {
    path.name: path.read_text("utf-8")
    for path in files(console).joinpath("templates").iterdir()
    if path.name.endswith(".html")
}
SCRIPT = files(console).joinpath("console.js").read_text("utf-8")


def test_every_alert_of_a_verdict_has_its_section_in_the_runbook() -> None:
    """The verdicts send people there."""
    sections = set(
        re.findall(r"^### (\w+)$", (ROOT / "docs/how-to/runbook.md").read_text(), re.MULTILINE)
    )
    verdicts = files(console).joinpath("cluster.py").read_text("utf-8")
    named = set(re.findall(r'"(OrderRelay\w+)"', verdicts))
    assert len(named) > 8
    assert named <= sections


@pytest.mark.parametrize("page", sorted(TEMPLATES))
def test_a_page_holds_nothing_that_its_policy_refuses(page: str) -> None:
    """No inline script, style or event handler, and no text that is not escaped."""
    text = TEMPLATES[page]
    assert "<style" not in text
    assert re.findall(r"<script(?! src=)", text) == []
    assert re.findall(r"\son\w+=|\sstyle=|\|safe|https?://", text) == []


def test_scripts_write_text_only_and_load_nothing_from_elsewhere() -> None:
    """What a target answered never becomes HTML."""
    for text in (SCRIPT, files(console).joinpath("console.css").read_text()):
        assert re.findall(r"https?://|innerHTML|insertAdjacentHTML|document\.write", text) == []


def test_the_script_finds_what_it_looks_for() -> None:
    """Ids that it asks for are in the layout."""
    layout = TEMPLATES["layout.html"]
    wanted = set(re.findall(r'byId\("([^"]+)"\)', SCRIPT))
    assert len(wanted) > 5
    assert [name for name in wanted if f'id="{name}"' not in layout] == []


OWN = "http://127.0.0.1:1/"


def stats(state: str = "works", *, lag: int | None = 0, **others: Any) -> dict[str, Any]:
    """The ``/stats`` of a healthy worker, except for the arguments."""
    return {
        "target": {"state": state, "said": f"{state} for 9 s"},
        "partitions": [{"partition": 0, "lag": lag}], "kafka_up": True, "in_flight": 1,
        "oldest_unfinished_seconds": 0.5,
        "open_dead_letters": {"total": 0, "oldest_seconds": 0.0, "deleted": 0},
        "fallback": {"failed": 0, "pending": 0, "database_up": True}, **others,
    }  # fmt: skip


def view(*answers: Mapping[str, Any], **history: Any) -> ConsumerView:
    """A consumer with these workers."""
    return ConsumerView(
        "coupons", [WorkerAnswer(f"http://w{n}/", one, history) for n, one in enumerate(answers)]
    )


def test_one_worker_that_is_well_is_well() -> None:
    """One good line, and nothing else."""
    (verdict,) = view(stats()).verdicts()
    assert (verdict.level, verdict.alert) == ("good", "")


@pytest.mark.parametrize(
    ("worker", "alert", "level"),
    [
        (stats("down"), "OrderRelayBreakerOpen", "bad"),
        (stats("refuses_us"), "OrderRelayTargetRefusesUs", "bad"),
        (stats("throttles"), "OrderRelayTargetThrottles", "warn"),
        (stats("fails_for_some"), "OrderRelayTargetFailsForMany", "note"),
        (stats(kafka_up=False), "OrderRelayKafkaUnreachable", "bad"),
        (stats(partitions=[]), "OrderRelayPartitionsUnassigned", "warn"),
        (stats(deleted_records=3), "OrderRelayRecordsDeleted", "bad"),
        (stats(near_deletion_records=3), "OrderRelayNearDeletion", "bad"),
        (stats(transaction_open_seconds=301), "OrderRelayTransactionOpen", "warn"),
        (stats(fallback={"failed": 2, "pending": 0, "database_up": True}),
         "OrderRelayFailedRows", "bad"),
        (stats(fallback={"failed": 0, "pending": 1, "database_up": True}),
         "OrderRelayPendingRowTooOld", "warn"),
        (stats(fallback={"failed": 0, "pending": 0, "database_up": False}),
         "OrderRelayFallbackDatabaseDown", "bad"),
        (stats(fallback={"failed": 0, "pending": 0, "database_up": True, "files_replaced": 1}),
         "OrderRelayFallbackFileReplaced", "bad"),
        (stats(open_dead_letters={"total": 65, "oldest_seconds": 7300, "deleted": 0}),
         "OrderRelayDeadLetters", "bad"),
        (stats(open_dead_letters={"total": 0, "oldest_seconds": 0, "deleted": 1}),
         "OrderRelayOpenDeadLettersDeleted", "bad"),
        (stats(paused=True), "", "warn"),
        (stats(group_problem="no right"), "OrderRelayPartitionsUnassigned", "bad"),
        (stats(intake_stopped_seconds=101), "OrderRelayIntakeStandsStill", "bad"),
        (stats(deliveries_table={"recovering": True}), "OrderRelayTableRecovering", "warn"),
        (stats(deliveries_table={"partitions_off": 1}), "OrderRelayTableOff", "bad"),
        (stats(published={"failed": 1}), "OrderRelayPublishFailed", "note"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_one_worker_sees_is_told_beside_one_that_is_well(
    worker: dict[str, Any], alert: str, level: str
) -> None:
    """Each problem of any worker has a line, with its section of the runbook."""
    whole = view(stats(), worker) if worker["partitions"] else view(worker)
    told = [(one.alert, one.level) for one in whole.verdicts() if one.level != "good"]
    assert told == [(alert, level)]
    assert any(one.level == "good" for one in whole.verdicts()) == (level == "note")


@pytest.mark.parametrize(
    ("worker", "began", "delivered", "level"),
    [
        ({}, 60.0, 0, "bad"),  # nothing is delivered
        ({}, 60.0, 9, "warn"),  # one record is stuck
        ({}, 200.0, 9, "good"),  # a backlog is worked off: another record each minute
        ({}, 0.0, 0, "good"),  # there was none before
        ({"breaker": {"state": "open"}}, 60.0, 0, "good"),
        ({"paused": True}, 60.0, 0, "warn"),
        ({"oldest_unfinished_seconds": 299.0}, 59.0, 0, "good"),
    ],
)
def test_a_record_that_is_stuck(
    worker: dict[str, Any], began: float, delivered: int, level: str
) -> None:
    """The oldest unfinished record has aged by as much as time has passed."""
    now = time.time()
    minutes = [
        {"at": now - 60.0 * ago, "oldest_seconds": began, "delivered": delivered * (ago < 1)}
        for ago in (5, 4, 3, 2, 1, 0)
    ]
    figures = stats(
        oldest_unfinished_seconds=360.0,
        breaker={"state": "closed"},
        paused=False,
        deliveries={"delivered": delivered},
    )
    verdicts = view(figures | worker, minutes=minutes).verdicts()
    assert [one.level for one in verdicts] == [level]
    assert ("OrderRelayOldestUnfinishedTooOld" in {one.alert for one in verdicts}) == (
        level != "good" and "paused" not in worker
    )


def test_a_source_topic_that_does_not_exist() -> None:
    """Told once the worker has asked for it, and Kafka has answered."""
    gone = stats(partitions=[], topic_partitions=0, uptime_seconds=61)
    assert view(gone).verdicts()[0].text == "The source topic does not exist."
    assert view(gone).lag is None
    for other in ({"uptime_seconds": 59}, {"topic_partitions": 3}, {"kafka_up": False}):
        assert all("source topic" not in one.text for one in view(gone | other).verdicts())


def test_open_letters_that_are_not_known() -> None:
    """Told once the worker had the time to count them, and Kafka answers."""
    unknown = stats(open_dead_letters={"total": None, "deleted": 0}, uptime_seconds=61)
    (verdict,) = view(unknown).verdicts()
    assert (verdict.level, verdict.link) == ("bad", "/dead-letters?consumer=coupons")
    assert "open dead letters are not known" in verdict.text
    for other in ({"uptime_seconds": 59}, {"kafka_up": False}):
        assert all("not known" not in one.text for one in view(unknown | other).verdicts())


def test_a_pause_that_has_not_reached_all_workers() -> None:
    """The line says on how many, and on which if it is one; without a number it is all of them."""
    (some,) = view(stats(paused=True), stats(paused=False)).verdicts()
    assert some.text == (
        "Paused on 1 of 2 workers (http://w0/): nothing is sent until a person resumes it."
    )
    (every,) = view(stats(paused=True), stats(paused=True)).verdicts()
    assert every.text == "Paused: nothing is sent until a person resumes it."


@pytest.mark.parametrize(
    ("states", "where", "texts"),
    [
        ("down", "", ["The target fails: records wait in Kafka, none is given up."]),
        ("down down", "", ["The target fails: records wait in Kafka, none is given up."]),
        ("works down", " on 1 of 2 workers (http://w1/)",
         ["The target fails on 1 of 2 workers (http://w1/): records wait in Kafka, none is given "
          "up."]),
        ("refuses_us works refuses_us", " on 2 of 3 workers",
         ["The target refuses our token, URL or certificate on 2 of 3 workers: records wait."]),
        ("throttles down", " on 1 of 2 workers (http://w1/)",
         ["The target fails on 1 of 2 workers (http://w1/): records wait in Kafka, none is given "
          "up.",
          "The target throttles on 1 of 2 workers (http://w0/): records are sent at the rate that "
          "it bears."]),
        ("works fails_for_some", " on 1 of 2 workers (http://w1/)",
         ["Records are delivered, and nothing waits for a person.",
          "The target fails for some records on 1 of 2 workers (http://w1/); they are tried "
          "again."]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_the_target_does_on_some_workers_is_not_told_of_all(
    states: str, where: str, texts: list[str]
) -> None:
    """Each line says on how many workers it is so, and on which if it is one."""
    whole = view(*map(stats, states.split()))
    assert whole.where == where
    assert [one.text for one in whole.verdicts()] == texts


def test_text_from_outside_cannot_change_what_is_shown() -> None:
    """Neither the direction of writing nor a long key; None is nothing."""
    assert shown("\u202eder\x1b[31m ü") == r"\u202eder\x1b[31m ü"
    assert shown("k" * 81) == "k" * 80 + "…"
    assert (shown("k" * 5000, 0), shown(None), shown(7)) == ("k" * 5000, "", "7")


def test_rows_that_wait_are_told_in_a_sentence() -> None:
    """One row and several."""
    rows = stats(fallback={"failed": 2, "pending": 1, "database_up": True})
    assert [one.text for one in view(rows).verdicts()] == [
        "2 rows of the fallback table wait for a person.",
        "1 row of the fallback table waits for Kafka.",
    ]


def test_open_letters_are_one_topics_not_summed() -> None:
    """Every worker counts the same letters; the line says how many and since when."""
    letters = {"total": 65, "oldest_seconds": 7300.0, "deleted": 0}
    (verdict,) = view(stats(open_dead_letters=letters), stats(open_dead_letters=letters)).verdicts()
    assert verdict.text == "65 dead letters wait for a person, the oldest for 2.0 h."
    assert verdict.link == "/dead-letters?consumer=coupons"


def test_lag_is_summed_and_unknown_if_a_part_is() -> None:
    """The lag is unknown while one worker does not know its part."""
    assert view(stats(lag=3), stats(lag=4)).lag == 7
    assert view(stats(lag=3), stats(lag=None)).lag is None
    assert view(stats(), stats()).total("in_flight") == 2


def test_a_worker_that_does_not_answer_is_told() -> None:
    """It is named, and the others are shown."""
    whole = ConsumerView(
        "coupons",
        [WorkerAnswer("http://a/", stats("down")), WorkerAnswer("http://b/", problem="refused")],
    )
    assert whole.state == "down"
    assert "http://b/ does not answer: refused" in whole.verdicts()[0].text
    assert whole.lag is None
    assert ConsumerView("coupons", []).verdicts()[0].alert == "OrderRelayNoWorker"


async def test_a_consumer_of_other_workers_is_linked_to_one_of_them() -> None:
    """Only to valid addresses of workers; without Kafka's answer nothing is wrong."""

    async def members() -> dict[str, set[str] | None]:
        return {"here": {OWN, "http://127.0.0.1:9/"}, "there": {"javascript:x", "http://127.0.0.1:9/"},
                "unknown": None, "nowhere": set()}  # fmt: skip

    here_figures = SimpleNamespace(figures=stats)
    here_history = SimpleNamespace(as_json=dict)
    own = {"here": served_consumer(stats=here_figures, history=here_history)}
    cluster = Cluster(URL(OWN), own, members)
    try:
        here, there, unknown, nowhere = await cluster.look()
        assert await cluster.elsewhere() == {"there": "http://127.0.0.1:9"}
    finally:
        await cluster.close()
    assert (here.base, len(here.workers)) == ("", 2)
    assert (there.base, len(there.workers)) == ("http://127.0.0.1:9", 1)
    assert [one.level for one in unknown.verdicts()] == ["note"]
    assert [one.alert for one in nowhere.verdicts()] == ["OrderRelayNoWorker"]


def test_outages_have_a_beginning_an_end_and_a_reason() -> None:
    """From the first failing state to the next that is not; the newest first."""
    changes = [
        (100, "works"), (200, "down"), (250, "refuses_us"), (300, "works"), (400, "down"),
    ]  # fmt: skip
    whole = view(
        stats(), target=[{"at": at, "state": state, "said": state} for at, state in changes]
    )
    assert whole.outages() == [(400, None, "http://w0/", "down"), (200, 300, "http://w0/", "down")]


def test_minutes_are_summed_over_workers_by_the_minute() -> None:
    """Lag is summed; ages are not."""
    minutes = [{"at": at, "lag": 5, "oldest_seconds": at / 60} for at in (60, 121)]
    whole = view(stats(), stats(), minutes=minutes)
    assert whole.minutes("lag", add=True) == [(60.0, 10.0), (120.0, 10.0)]
    assert whole.minutes("oldest_seconds", add=False) == [(60.0, 1.0), (120.0, 121 / 60)]


def test_a_rate_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last minute but one until now; unknown in the first second."""
    monkeypatch.setattr(time, "time", lambda: 230.0)
    minutes = [{"at": at, "delivered": at} for at in (60, 120, 180)]
    now = stats(deliveries={"delivered": 670})
    assert WorkerAnswer(OWN, now, {"minutes": minutes}).rate == 5.0
    assert WorkerAnswer(OWN, now, {"minutes": [{"at": 229.5, "delivered": 0}]}).rate is None
    assert WorkerAnswer(OWN, now).rate is None


def test_a_chart_fits_its_box() -> None:
    """From 0 to the largest value; with one point there is nothing to draw."""
    assert chart([(0, 1)]) == ""
    points = [
        tuple(map(float, one.split(","))) for one in chart([(0, 0), (60, 5), (120, 10)]).split()
    ]
    assert points == [(0.0, 47.0), (120.0, 24.0), (240.0, 1.0)]
    assert "nan" not in chart([(0, 0), (60, 0)])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.02, "20 ms"), (119, "119 s"), (120, "2 min"), (7300, "2.0 h"), (200_000, "2 d"),
     (None, "an unknown time")],
)  # fmt: skip
def test_spans_are_in_one_unit(seconds: float | None, text: str) -> None:
    """Short enough for a line."""
    assert span(seconds) == text
