"""A real Apache Kafka cluster for tests: three KRaft brokers on loopback, and their faults.

    with RealKafka() as kafka:
        kafka.create_topic("orders", partitions=3)
        kafka.kill(kafka.leader_of("orders", 0))
        ...
        kafka.revive()

Every method blocks its thread, some for seconds, and may be called from any thread: a coroutine
calls `await asyncio.to_thread(kafka.revive, 2)`. No JVM outlives the process that started it,
however that ends (on Linux; elsewhere only a SIGKILL of that process leaves them).
"""

from tests.support.kafka.cluster import RealKafka
from tests.support.kafka.distribution import KafkaUnavailable, unavailable_reason

__all__ = ["KafkaUnavailable", "RealKafka", "unavailable_reason"]
