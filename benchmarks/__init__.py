"""Measurements that users can repeat; docs/performance.md says how to read them."""
