"""Measurement: time, memory, work, roofs and references."""
