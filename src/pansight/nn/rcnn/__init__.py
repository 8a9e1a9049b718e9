"""The two-stage detector: region proposals, and what looks at one region."""
