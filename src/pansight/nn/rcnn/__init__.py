"""The two-stage detector: the region proposal network, and the heads that predict from one region."""
