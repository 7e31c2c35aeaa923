"""Pages of figures for users, made from benchmarks/results/*.json.

    python -m benchmarks.pages

writes the pages that `__main__.PAGES` names into docs/. A page is a pure function of the results; a
test compares the committed pages with it. What was measured before, and what was tried, stands in
benchmarks/LOG.md.
"""
