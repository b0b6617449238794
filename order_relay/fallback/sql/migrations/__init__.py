"""Alembic's migrations of the fallback table; ``order_relay.fallback.sql.migrate`` runs them."""
