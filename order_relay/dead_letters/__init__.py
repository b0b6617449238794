"""Dead letters in Kafka: reading, filtering and redriving them."""
