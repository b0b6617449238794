"""What Faust does, and what the harness does: `make test-faust`, when a version has moved."""
