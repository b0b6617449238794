"""The table of orders."""

import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    """Makes it."""

    initial = True
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("user_id", models.BigIntegerField()),
                ("paid_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("items", models.JSONField()),
            ],
        ),
    ]
