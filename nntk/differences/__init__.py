"""Differences of a model's outputs at displaced parameters, by the route that the model allows."""
