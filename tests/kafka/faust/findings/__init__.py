"""Small stock Faust apps, one for each finding; `tests.kafka.faust.test_findings` runs them.

They use Faust as its manual shows and nothing of ours: what they lose, stock Faust loses.
"""
