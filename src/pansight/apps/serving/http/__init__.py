"""What stands between a request and the models: limits, bodies, refusals, and the types of both sides."""
