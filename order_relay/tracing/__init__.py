"""Tracing with OpenTelemetry (docs/how-to/tracing.md); off by default.

Only ``spans`` and ``export`` import OpenTelemetry, and only TRACING=otlp imports them.
"""
