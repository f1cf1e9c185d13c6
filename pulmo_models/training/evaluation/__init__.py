"""Figures of a set of weights: detection (FROC), characterisation, real series, phantoms; report and comparison."""
