"""Trained agents: one folder each with recipe, results and policy; data, not code."""
