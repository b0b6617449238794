"""The shop's consumers: ``faust -A app worker`` runs those of the package ``agents``."""

from order_relay.worker import create_app

app = create_app()
app.import_consumers("agents")
