"""What the people on call use: metrics, health, the web pages."""
