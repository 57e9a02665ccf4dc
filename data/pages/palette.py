"""Colours of charts."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
"""Colours that people with colour blindness can distinguish (Okabe and Ito). assets/page.js replaces the dark ones on a
dark page."""
