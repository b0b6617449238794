"""Publishing events: acknowledged by Kafka, or saved in the fallback table, or an error."""
