"""What Alembic runs: the migrations, on the connection that ``migrate`` hands in."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    # SQLite's DDL is transactional too, although Alembic does not count on it.
    transactional_ddl=True,
)
context.run_migrations()
