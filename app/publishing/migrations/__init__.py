"""Alembic's migrations of the fallback table; ``app.publishing.migrate`` runs them."""
