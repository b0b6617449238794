"""Measurements that users can repeat; docs/explanation/performance.md says how to read them."""
