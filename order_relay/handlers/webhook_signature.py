"""The signature of a POST, by Standard Webhooks: it shows the receiver who sent it, and when.

The rules: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Callable, Sequence


class Signer:
    """Signs with every key that receivers may hold: during a rotation the old and the new one."""

    def __init__(self, keys: Sequence[bytes], clock: Callable[[], float]) -> None:
        """Sign with these keys; ``clock`` gives seconds since the epoch."""
        self._keys = keys
        self._clock = clock

    def headers(self, message_id: str, body: bytes) -> str:
        """Return the lines of the headers of an attempt made now.

        Args:
            message_id: The same over all attempts; nothing that could end a header's line.
            body: As it is sent.
        """
        timestamp = int(self._clock())
        signed = f"{message_id}.{timestamp}.".encode() + body
        signatures = " ".join(
            f"v1,{b64encode(hmac.digest(key, signed, 'sha256')).decode()}" for key in self._keys
        )
        return (
            f"webhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\n"
            f"webhook-signature: {signatures}\r\n"
        )
