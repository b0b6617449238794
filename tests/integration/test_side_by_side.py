"""The test run spread over several processes."""

import pytest

RUN_HERE: list[int] = []


@pytest.mark.parametrize("number", range(8))
@pytest.mark.xdist_group("one_process")
def test_a_group_stays_in_one_process(number: int) -> None:
    """Tests that share a resource, such as brokers that they harm, run in one process.

    Some versions of pytest-xdist and pytest disagree about where a test's group is stored, and
    then spread it silently.
    """
    RUN_HERE.append(number)
    assert list(range(number + 1)) == RUN_HERE
