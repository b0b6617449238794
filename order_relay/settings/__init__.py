"""Settings: read from the environment once, validated, and passed down."""

from order_relay.settings.settings import Settings, load_settings

__all__ = ["Settings", "load_settings"]
