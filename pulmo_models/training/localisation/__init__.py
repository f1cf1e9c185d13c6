"""Training of the lung localisation: boxes by the classical segmentation, two regressors, their evaluation."""
