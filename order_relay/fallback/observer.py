"""What publishing tells whoever counts."""

from __future__ import annotations

from typing import Protocol


class PublishObserver(Protocol):
    """Is told of every outcome; must neither block nor raise."""

    def published(self, result: str) -> None:
        """A publish ended: acknowledged, saved, invalid, too_large or failed."""

    def replayed(self, result: str) -> None:
        """A claimed row was tried: ``published``, ``retried`` or ``failed``."""


class Unobserved:
    """Counts nothing."""

    def published(self, result: str) -> None:
        """See ``PublishObserver.published``."""

    def replayed(self, result: str) -> None:
        """See ``PublishObserver.replayed``."""
