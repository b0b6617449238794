"""The producing half: records acknowledged by Kafka, or an error; never a silent loss."""
