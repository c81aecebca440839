"""Training: state, the pure step, optimizer, sharding, metrics and the loop."""
