"""Pipelines for chest CT."""
