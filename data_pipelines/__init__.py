"""Data for world-action models: stores of episodes, windows over them, statistics, mixtures. No device code."""
