"""Logging: lines as text and JSON, filters, and the streams they are written to."""
