"""What counts as committed; the coordinator's answers are those of Kafka's protocol."""

from typing import Any

import pytest
from aiokafka import errors
from aiokafka.protocol.commit import OffsetFetchRequest_v3, OffsetFetchResponse_v3
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from order_relay.kafka.committed_offsets import fetch_commits

FIRST, SECOND = TopicPartition("order-paid-events", 0), TopicPartition("order-paid-events", 1)
COMMITTED = OffsetFetchResponse_v3(0, [(FIRST.topic, [(0, 7, "m", 0), (1, -1, "", 0)])], 0)


def refused(error: type[errors.KafkaError]) -> OffsetFetchResponse_v3:
    """A broker's error about the group: the answer has no partitions."""
    return OffsetFetchResponse_v3(0, [], error.errno)


def refused_topic(error: type[errors.KafkaError]) -> OffsetFetchResponse_v3:
    """A coordinator's error about a topic."""
    return OffsetFetchResponse_v3(0, [(FIRST.topic, [(0, -1, "", error.errno)])], 0)


class Coordinator:
    """A group's coordination that gets these answers, one after the other."""

    group_id = "order-relay"
    _retry_backoff_ms = 0

    def __init__(self, *answers: OffsetFetchResponse_v3 | errors.KafkaError) -> None:
        self.answers = list(answers)
        self.searches = 0
        self.known = False

    async def ensure_coordinator_known(self) -> None:
        """Find it again, if it is dead."""
        self.searches += not self.known
        self.known = True

    def coordinator_dead(self) -> None:
        """Forget where it is."""
        self.known = False

    async def _send_req(self, request: Any) -> OffsetFetchResponse_v3:
        built = request.build(OffsetFetchRequest_v3)
        assert (built.consumer_group, built.topics) == (self.group_id, [(FIRST.topic, [0, 1])])
        answer = self.answers.pop(0)
        if isinstance(answer, errors.KafkaError):
            raise answer
        return answer


async def test_a_partition_has_a_commit_or_none() -> None:
    """An offset of -1 means none; without partitions Kafka is not asked."""
    assert await fetch_commits(Coordinator(), []) == {}
    commits = await fetch_commits(Coordinator(COMMITTED), [FIRST, SECOND])
    assert commits == {FIRST: OffsetAndMetadata(7, "m"), SECOND: None}


async def test_the_answer_of_a_broker_that_is_not_the_coordinator_is_ignored() -> None:
    """It has no partitions; the coordinator is looked up again."""
    coordinator = Coordinator(refused(errors.NotCoordinatorForGroupError), COMMITTED)
    commits = await fetch_commits(coordinator, [FIRST, SECOND])
    assert commits == {FIRST: OffsetAndMetadata(7, "m"), SECOND: None}
    assert coordinator.searches == 2


@pytest.mark.parametrize(
    "passing", [refused(errors.GroupLoadInProgressError), errors.KafkaConnectionError("closed")]
)
async def test_temporary_errors_are_retried(
    passing: OffsetFetchResponse_v3 | errors.KafkaError,
) -> None:
    """A coordinator that loads the group after a restart, or a broken connection."""
    coordinator = Coordinator(passing, passing, COMMITTED)
    assert (await fetch_commits(coordinator, [FIRST, SECOND]))[FIRST] == OffsetAndMetadata(7, "m")
    assert coordinator.answers == []


@pytest.mark.parametrize(
    "answer",
    [
        refused(errors.GroupAuthorizationFailedError),
        refused_topic(errors.TopicAuthorizationFailedError),
    ],
)
async def test_permanent_errors_are_raised(answer: OffsetFetchResponse_v3) -> None:
    """The worker does not begin to read."""
    with pytest.raises(
        (errors.GroupAuthorizationFailedError, errors.TopicAuthorizationFailedError)
    ):
        await fetch_commits(Coordinator(answer), [FIRST, SECOND])
