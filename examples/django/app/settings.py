"""The service's settings."""

import os

# The relay uses the same database: see app/relay.py.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE_URL", "sqlite:///shop.db").removeprefix("sqlite:///"),
        # A file has one writer at a time; this lets the others wait for their turn.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 30},
        # The relay needs a file, also in tests.
        "TEST": {"NAME": "test-shop.db"},
    }
}
ORDER_PAID_TOPIC = os.environ.get("ORDER_PAID_TOPIC", "order-paid-events")

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

SECRET_KEY = os.environ.get("SECRET_KEY", "only for this example")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
INSTALLED_APPS = ["app"]
ROOT_URLCONF = "app.urls"
WSGI_APPLICATION = "app.wsgi.application"
USE_TZ = True
