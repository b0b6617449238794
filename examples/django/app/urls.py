"""The service's only route."""

from django.urls import path

from app.views import pay

urlpatterns = [path("orders", pay)]
