"""The parts of bench/proof.py: its settings, arms, scores and table.

settings.py   the sizes, each choice with its reason; seeds and domains to tune on, and others to report
arms.py       what is compared, and how each arm goes on from the base it shares with the others
rows.py       rows.jsonl: one line a finished arm; how long those to come will take
scores.py     figures person by person, so that people can be drawn anew
table.py      means, spreads and paired differences with intervals, as Markdown
"""
