"""What is run by hand beside ``make``: the environment, and the reference pages."""
