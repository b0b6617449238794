"""Kafka's clients: producer, consumer, topics, committed offsets, authentication."""
