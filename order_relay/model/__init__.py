"""Records and events: what comes out of Kafka, and what a consumer declares about it."""
