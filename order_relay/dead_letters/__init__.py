"""The dead-letter topic: reading letters, choosing some, redriving them."""
