"""Alembic's entry point: runs the migrations on the connection that ``migrate`` passes."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    # SQLite's DDL is transactional, too, although Alembic assumes that it is not.
    transactional_ddl=True,
)
context.run_migrations()
