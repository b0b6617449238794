"""The ``deliveries`` table: the result of each order's latest record, its changelog, its lookup.

Every finished record leaves an entry in a store on this worker and in a compacted changelog topic,
from which the next owner of the partition reads it. An event that has a delivered entry is not
delivered again.
"""
