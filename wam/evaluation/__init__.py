"""Closed-loop and world-model evaluation, baselines, plots and the report."""
