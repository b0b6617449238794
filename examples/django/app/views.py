"""Pays orders: the order and its event commit together."""

import json

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from app.models import Order
from app.outbox import add_event

DECLINED_CARD = "declined"


class PaymentDeclined(Exception):
    """The payment provider refused the card."""


def charge(card: str) -> None:
    """Charge a card; a real service calls its payment provider here.

    Raises:
        PaymentDeclined: The card is the one that is always declined.
    """
    if card == DECLINED_CARD:
        raise PaymentDeclined


@csrf_exempt
@require_POST
def pay(request: HttpRequest) -> JsonResponse:
    """Pay an order."""
    new = json.loads(request.body)
    try:
        with transaction.atomic():
            order = Order.objects.create(user_id=new["userId"], items=new["orderItems"])
            add_event(order.paid_event())
            charge(new["card"])  # an error rolls both back
    except PaymentDeclined:
        return JsonResponse({"detail": "payment declined"}, status=402)
    return JsonResponse({"orderId": order.pk}, status=201)
