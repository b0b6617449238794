"""The Faust tables. Every module here is imported when the worker starts, as the agents are."""
