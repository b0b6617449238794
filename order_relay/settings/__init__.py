"""Settings: read from the environment once, checked, and passed down."""

from order_relay.settings.settings import Settings, load_settings

__all__ = ["Settings", "load_settings"]
