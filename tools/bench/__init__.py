"""Benchmarks: programs that answer one question each and are never timed tests. Results: README.md."""
