"""Small stock Faust apps, one for each finding; `tests.kafka.faust.test_findings` runs them.

They use Faust as its manual shows, without the relay: what they lose, stock Faust loses.
"""
