"""Suites of the bench harness."""
