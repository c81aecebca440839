"""Serving: what stands between a policy and robots."""
