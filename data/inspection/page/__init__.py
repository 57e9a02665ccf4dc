"""The page of scripts/inspect_data.py --html: tables, charts and texts of the data of a config in one HTML file.

The statistics and comparisons are computed in data/inspection. The skeleton of the page is in data/pages.
"""
