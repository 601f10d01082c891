"""Logs, stores and exports as released versions wrote them, and what is in them; a folder each, made once and never changed.

`python -m tests.golden VERSION` makes one with the version that is checked out. `tests/integration/test_golden.py` opens all.
"""
