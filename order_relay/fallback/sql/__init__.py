"""The fallback table in SQL: PostgreSQL and SQLite, by SQLAlchemy."""
