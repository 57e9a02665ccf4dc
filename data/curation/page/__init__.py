"""What a curation shows: the page curation.html with the funnel, scores, samples and costs of the steps, and the same
numbers as tables on the console.

Everything is drawn from the report. The skeleton of the page is in data/pages.
"""
