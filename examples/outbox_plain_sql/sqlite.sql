-- An order and its event in one transaction, by plain SQL on SQLite:
--   sqlite3 -bail shop.db < sqlite.sql
-- The table is made by: DATABASE_URL=sqlite:///shop.db python -m order_relay.fallback.sql.migrate
-- A worker with that DATABASE_URL publishes the row within a minute.

CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL,
    paid_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
);

-- IMMEDIATE, so that it waits for other writers at its beginning rather than fails in its middle.
BEGIN IMMEDIATE;

INSERT INTO orders (user_id) VALUES (456);

-- These four columns are all that an event needs: it is PENDING and due at once.
INSERT INTO kafka_fallback_message (topic, message_key, payload, headers)
SELECT
    'order-paid-events',
    CAST(id AS TEXT),
    json_object(
        'eventType', 'ORDER_PAID',
        'orderId', id,
        'userId', user_id,
        'paidAt', paid_at,
        'orderItems', json_array(json_object('productId', 1, 'orderQuantity', 2))
    ),
    json_object('event-id', 'order-' || id || '-paid')
FROM orders WHERE id = last_insert_rowid();

COMMIT;
