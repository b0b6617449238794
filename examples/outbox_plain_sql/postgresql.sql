-- An order and its event in one transaction, by plain SQL on PostgreSQL:
--   psql -v ON_ERROR_STOP=1 -v order_id=123 -f postgresql.sql shop
-- The table is made by: DATABASE_URL=postgresql://… python -m order_relay.fallback.sql.migrate
-- A worker with that DATABASE_URL publishes the row within a minute.

CREATE TABLE IF NOT EXISTS orders (
    id bigint PRIMARY KEY,
    user_id bigint NOT NULL,
    paid_at timestamptz NOT NULL DEFAULT now()
);

BEGIN;

INSERT INTO orders (id, user_id) VALUES (:order_id, 456);

-- These four columns are all that an event needs: it is PENDING and due at once.
INSERT INTO kafka_fallback_message (topic, message_key, payload, headers)
SELECT
    'order-paid-events',
    id::text,
    json_build_object(
        'eventType', 'ORDER_PAID',
        'orderId', id,
        'userId', user_id,
        'paidAt', to_char(paid_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'orderItems', json_build_array(json_build_object('productId', 1, 'orderQuantity', 2))
    )::text,
    json_build_object('event-id', 'order-' || id || '-paid')::text
FROM orders WHERE id = :order_id;

COMMIT;
