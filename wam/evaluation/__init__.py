"""How good is it: closed loop in a simulator, world-model errors, plots and the report."""
