"""Everything that talks to Kafka: clients, topics, committed offsets."""
