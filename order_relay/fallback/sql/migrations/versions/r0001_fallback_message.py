"""The table ``kafka_fallback_message`` and its indexes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TABLE = "kafka_fallback_message"


def upgrade() -> None:
    """Create the table."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    moment: sa.types.TypeEngine[object] = sa.Text() if sqlite else sa.DateTime(timezone=True)  # type: ignore[assignment]
    now = sa.text("(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')" if sqlite else "now()")
    checks: list[sa.Constraint] = [
        sa.CheckConstraint("status IN ('PENDING', 'PUBLISHED', 'FAILED')", name=f"{TABLE}_status"),
        sa.CheckConstraint("topic <> ''", name=f"{TABLE}_topic"),
    ]
    if sqlite:
        # Its times are text: another format would sort wrongly, or break the claim.
        checks += [
            sa.CheckConstraint(
                f"datetime({column}) IS NOT NULL AND {column} GLOB '????-??-?? ??:??:??*'",
                name=f"{TABLE}_{column}",
            )
            for column in ("next_retry_at", "created_at", "updated_at")
        ]
    op.create_table(
        TABLE,
        sa.Column(
            "id",
            sa.Integer() if sqlite else sa.BigInteger(),
            *([] if sqlite else [sa.Identity()]),
            primary_key=True,
        ),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("message_key", sa.Text),
        sa.Column("payload", sa.Text),
        sa.Column("headers", sa.Text),
        sa.Column("message_partition", sa.Integer),
        sa.Column("retry_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("max_retry", sa.Integer, nullable=False, server_default="3"),
        sa.Column("status", sa.Text, nullable=False, server_default="PENDING"),
        sa.Column("next_retry_at", moment, nullable=False, server_default=now),
        sa.Column("error_message", sa.Text),
        sa.Column("created_at", moment, nullable=False, server_default=now),
        sa.Column("updated_at", moment, nullable=False, server_default=now),
        sa.Column("published_at", moment),
        sa.Column("lease_token", sa.Text),
        sa.Column("lease_until", moment),
        *checks,
        # Never reuse ids of deleted rows: event ids may be made from them.
        sqlite_autoincrement=True,
    )
    pending = sa.text("status = 'PENDING'")
    published = sa.text("status = 'PUBLISHED'")
    op.create_index(
        f"{TABLE}_due",
        TABLE,
        ["next_retry_at", "id"],
        sqlite_where=pending,
        postgresql_where=pending,
    )
    # A key may be too long for an entry of a PostgreSQL index; its hash is not.
    key = "message_key" if sqlite else sa.text("hashtextextended(message_key, 0)")
    op.create_index(
        f"{TABLE}_order",
        TABLE,
        ["topic", key, "id"],
        sqlite_where=pending,
        postgresql_where=pending,
    )
    op.create_index(f"{TABLE}_status", TABLE, ["status", "id"])
    op.create_index(
        f"{TABLE}_purge",
        TABLE,
        ["published_at"],
        sqlite_where=published,
        postgresql_where=published,
    )


def downgrade() -> None:
    """Refuse: the rows are orders that are saved nowhere else."""
    raise NotImplementedError("no migration drops the fallback table")
