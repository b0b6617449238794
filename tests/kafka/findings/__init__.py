"""Small stock Faust apps, one for each finding; `tests.kafka.test_faust_findings` runs them.

They use Faust as its manual shows and nothing of ours: what they lose, stock Faust loses.
"""
