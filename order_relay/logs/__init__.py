"""Log lines: their format as text and JSON, their rate limit, and the streams they go to."""
