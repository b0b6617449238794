"""The shop's consumers and timers, one file each."""
