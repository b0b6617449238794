"""The dashboards as code; ``python -m grafana.build`` writes them to ``dashboards/``."""
