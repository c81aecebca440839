"""Simulators, one adapter a file; each imports its simulator only when an environment is built."""
