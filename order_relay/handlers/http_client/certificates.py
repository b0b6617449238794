"""The TLS context of a target, and the files that it is made of."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from order_relay.logs.log_line import LogLine

# Minimum time between two looks at the files.
LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class CertificateFiles:
    """Makes a TLS context of PEM files, and a new one after they have changed.

    cert-manager and others renew certificates at the same paths.
    """

    def __init__(
        self,
        authorities: Path | None,
        certificate: Path | None,
        key: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the files.

        Args:
            authorities: CA certificates; ``None``: the system's, which are read only once.
            certificate: Our certificate, if we have one.
            key: Its key, if that is in a file of its own.
            clock: The time in seconds.

        Raises:
            OSError: A file cannot be used.
        """
        self._authorities, self._certificate, self._key = authorities, certificate, key
        self._files = [file for file in (authorities, certificate, key) if file is not None]
        self._clock = clock
        # Before the files are read: what changes meanwhile is noticed.
        self._loaded = self._refused = self._versions()
        self._context = self._load()
        self._look_at = clock() + LOOK_SECONDS

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection; the last good one if the files are not usable.

        It blocks while it reads changed files.
        """
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        return self._context

    def _look(self) -> None:
        found = self._versions()
        if found == self._loaded:
            return
        files = " ".join(map(str, self._files))
        try:
            self._context = self._load()
        except OSError as error:
            # Tried again at the next look: this host may have lacked file descriptors.
            if found != self._refused:
                self._refused = found
                phrase = "Renewed certificate files cannot be used"
                logger.warning(LogLine(phrase, files=files, detail=str(error)))
        else:
            self._loaded = found
            logger.info(LogLine("Certificate files read again", files=files))

    def _versions(self) -> list[tuple[int, ...] | None]:
        return [_version(file) for file in self._files]

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._authorities)
        if self._certificate is not None:
            # Without any password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, "")
        return context


def _version(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
