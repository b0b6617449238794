"""Records, events, and the declaration of a consumer."""
