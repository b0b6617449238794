"""The harness, when something that it needs is missing."""

from pathlib import Path

import pytest

from tests.support.kafka import distribution


def _reason() -> str:
    with pytest.raises(distribution.KafkaUnavailable) as raised:
        distribution.fetch_jars()
    return str(raised.value)


def test_what_is_missing_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Java, an old Java, or no Maven with an incomplete cache: each is named."""
    monkeypatch.setenv("RELAY_KAFKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    assert "no java in JAVA_HOME or PATH" in _reason()

    java = programs / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    assert _reason().endswith(f"{java} is Java 11")

    java.write_text("#!/bin/sh\necho 'openjdk version \"21\" 2023-09-19' >&2\n")
    half = distribution.cache_directory()
    half.mkdir(parents=True)
    (half / "kafka-clients-4.3.1.jar").touch()
    assert "no mvn in PATH" in _reason()

    for line in distribution.DIGESTS.read_text().splitlines():
        (half / line.split()[1]).touch()
    assert distribution.fetch_jars() == half
