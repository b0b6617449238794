"""The command ``publish``: one event a line, from a file or standard input."""

from order_relay.cli.publish import publish

__all__ = ["publish"]
