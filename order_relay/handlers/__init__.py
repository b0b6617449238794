"""Handlers: an HTTP POST, or a function. They make an attempt and judge its answer."""
