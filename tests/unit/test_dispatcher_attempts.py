"""How many POSTs a record took, as its outcome says it, whatever became of it."""

import pytest

from order_relay.delivery.answer import RetryPolicy
from tests.support.fakes import Bench, answer, record
from tests.support.virtual_time import virtual_time


@pytest.mark.parametrize(
    ("answers", "attempts"),
    [
        ([401, 401, 401, 400], 4),
        ([401, 401, 401, 200], 4),
        ([503, 401, 503], 3),
        ([400], 1),
    ],
)
@virtual_time
async def test_every_post_counts(answers: list[int], attempts: int) -> None:
    """Those that count against the record, and those that an outage of the target explains."""
    bench = Bench(policy=RetryPolicy(max_retries=1))
    one = record(1)
    bench.target.plan(one, *(answer(status) for status in answers))
    await bench.submit(one)
    await bench.until_finished(1)
    assert (len(bench.target.attempts), bench.outcomes[0].attempts) == (attempts, attempts)
