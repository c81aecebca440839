"""Flow matching: conventions, modes, losses and the sampler."""
