"""What stays on disk: recipes, checkpoints, policies, curves."""
