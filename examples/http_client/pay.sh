#!/bin/sh
# Publish a paid order over HTTP: sh pay.sh ORDER_ID
#
# curl tries again on 408, 429, 503 and refused connections, and waits as long as Retry-After says; what
# it takes for final is a connection that was lost, after which the event may be nowhere: hence the loop.
# The event-id is made from the order, so that every attempt, also of another run, has the same.
set -eu
order_id=${1:?usage: sh pay.sh ORDER_ID}

set -- --request POST "${RELAY_URL:-http://127.0.0.1:6066}/order-paid" \
	--header 'Content-Type: application/json' \
	--header "event-id: order-$order_id-paid"
if [ -n "${API_TOKEN:-}" ]; then
	set -- "$@" --header "Authorization: Bearer $API_TOKEN"
fi

# While Kafka is down an answer takes up to PRODUCER_DELIVERY_TIMEOUT_MS, 2 minutes.
for wait_seconds in 1 2 4 8 16 end; do
	status=0
	curl --silent --show-error --fail-with-body --max-time 150 \
		--retry 5 --retry-connrefused "$@" \
		--data '{"eventType":"ORDER_PAID","orderId":'"$order_id"',"userId":456,"paidAt":"2025-12-19T10:30:00","orderItems":[{"productId":1,"orderQuantity":2}]}' ||
		status=$?
	case $status in
	18 | 52 | 55 | 56) [ "$wait_seconds" = end ] || sleep "$wait_seconds" ;; # lost in between
	*) break ;;
	esac
done
exit "$status"
