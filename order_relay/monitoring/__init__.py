"""Metrics, health, lag, and the figures of ``/stats``."""
