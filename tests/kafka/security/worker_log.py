"""Checks of a worker's log."""

import base64

from tests.support.secure_kafka import CLIENT_SECRET, KEY_PASSWORD, PASSWORD, SecureKafka
from tests.support.worker import WorkerProcess

# A start and a stop log about 80 lines; a flood has hundreds.
MOST_LINES = 150


def check_length(worker: WorkerProcess) -> None:
    """The log is short, and has no stack trace."""
    text = worker.log_text()
    assert "Traceback" not in text, text
    assert len(text.splitlines()) <= MOST_LINES, text


def check_secrets(worker: WorkerProcess, secure: SecureKafka) -> None:
    """The log has neither a password nor a token."""
    text = worker.log_text()
    known = (PASSWORD, CLIENT_SECRET, KEY_PASSWORD, "hunter2", *secure.provider.tokens)
    for secret in known:
        assert secret not in text
        assert base64.b64encode(secret.encode()).decode() not in text
