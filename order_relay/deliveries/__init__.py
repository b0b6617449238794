"""What became of order N: the ``deliveries`` table, its changelog, and how it is asked.

Every finished record leaves an entry: in a store on this worker, and in a compacted changelog
topic, from which the next owner of the partition takes it over. An event that an entry says is
delivered is not posted again.
"""
