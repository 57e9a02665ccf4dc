"""The parts that all HTML pages of this program share: the skeleton, styles, tables, colours, and the JavaScript that
draws charts.

Each page is one file without external links. The content of a page is in the package that writes it.
"""
