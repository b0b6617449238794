"""The console: pages that show all workers and consumers, and change what waits for a person."""
