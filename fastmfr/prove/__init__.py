"""Comparisons of models on domains that were not seen: each domain is left out in turn, and arms share a base.

arms.py        what is compared, and the settings of each arm
cell.py        one seed and one domain left out: the base, and the arms that go on from it
pooled.py      the arms without a meta step: ordinary training on the images of the meta arms
successors.py  arms with losses of the method's successors
scores.py      figures person by person, so that people can be drawn again
rows.py        rows.jsonl: one line for each finished arm
pace.py        how long the missing arms take
gains.py       differences between arms, with intervals over runs and people
verdict.py     what the differences say, in sentences
comparison.py  what is missing is made                         checks.py  what is looked at before any work
report.py      all that is written at the end
tables.py      means, spreads and gains as tables    plots.py  the gains as a picture    page.py  the page
"""
