"""The test run spread over several processes."""

import pytest

RUN_HERE: list[int] = []


@pytest.mark.parametrize("number", range(8))
@pytest.mark.xdist_group("one_process")
def test_a_group_stays_in_one_process(number: int) -> None:
    """What shares one thing, such as the brokers that it harms, is not spread over processes.

    Some versions of pytest-xdist and pytest do not agree on where a test says its group, and then
    spread it without a word.
    """
    RUN_HERE.append(number)
    assert list(range(number + 1)) == RUN_HERE
