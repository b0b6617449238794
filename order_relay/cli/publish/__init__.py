"""The command ``order-relay publish``: one event a line, from a file or standard input."""
