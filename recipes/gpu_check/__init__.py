"""Whether all this holds on the devices that are here: `make check-gpu`.

Trains the debug recipes as users start them, exports what they trained, runs the parity matrix, and
measures what NITP costs. One report, Markdown and JSON, whatever fails.
"""
