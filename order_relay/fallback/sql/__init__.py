"""The fallback table in SQL: PostgreSQL and SQLite, with SQLAlchemy."""
