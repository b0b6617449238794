"""Settings: read from the environment once, checked, and passed down."""
