"""A trained model inside other people's tools: one file for each of them."""
