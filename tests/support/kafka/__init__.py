"""The parts of the real Apache Kafka harness; `tests.support.kafka.cluster` puts them together."""
