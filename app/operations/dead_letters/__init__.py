"""Working on what stands in the dead-letter topic; the commands ``dlq-…`` are its face."""
