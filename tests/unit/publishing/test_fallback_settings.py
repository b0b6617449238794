"""The settings of the fallback table."""

import pytest

from order_relay.errors import InvalidSettings
from order_relay.settings import load_settings


def test_database_url_is_a_secret() -> None:
    """A password in the URL is in no message and no representation of the settings."""
    settings = load_settings(database_url="postgresql://u:hidden@h/d")
    assert "hidden" not in repr(settings)
    assert settings.database_url.get_secret_value() == "postgresql://u:hidden@h/d"
    with pytest.raises(InvalidSettings, match="unknown driver 'oracle'") as caught:
        load_settings(database_url="oracle://u:hidden@h/d")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fallback_max_retry", "0"),
        ("fallback_backoff_base_seconds", "0"),
        ("fallback_replay_interval_seconds", "-1"),
        ("fallback_retention_days", "-1"),
        ("fallback_stats_interval_seconds", "x"),
    ],
)
def test_wrong_values_are_named(name: str, value: str) -> None:
    """Each wrong value is one line with the variable's name."""
    with pytest.raises(InvalidSettings, match=name.upper()):
        load_settings(**{name: value})
