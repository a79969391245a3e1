"""Gymnasium environments of our own."""
