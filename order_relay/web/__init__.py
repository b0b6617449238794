"""The web server of a worker: health, metrics, ``/stats``, orders, the console."""
