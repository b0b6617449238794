"""The command ``order-relay``: ``main`` knows the subcommands and imports one when it runs."""
