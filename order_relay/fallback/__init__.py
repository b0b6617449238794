"""The fallback table: records that Kafka refused, and their replay to Kafka."""
