"""An order service with FastAPI."""
