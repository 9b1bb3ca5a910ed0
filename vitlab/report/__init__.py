"""Notebooks made into one report, HTML and PDF."""
