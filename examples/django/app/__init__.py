"""An order service with Django."""
