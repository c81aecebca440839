"""Closed-loop success, world-model accuracy, baselines and reports."""
