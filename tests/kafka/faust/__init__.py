"""Tests of Faust and of the harness: `make test-faust`, after a change of versions."""
