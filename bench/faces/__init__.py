"""The parts of bench/faces.py.

measure.py   a domain as a model sees it: cosines of genuine and impostor pairs, and figures of them
page.py      the figures as a page of Markdown, the cosines as histograms
"""
