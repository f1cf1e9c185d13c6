"""Pipelines for chest radiographs."""
