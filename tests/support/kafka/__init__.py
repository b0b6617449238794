"""The parts of the real Apache Kafka harness; `tests.support.kafka_cluster` puts them together."""
