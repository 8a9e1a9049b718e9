"""Pure functions on tensors: no weights, no state, no mutation of inputs."""
