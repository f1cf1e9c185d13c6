"""Figures from scores and truth: FROC, AUC, Dice, calibration, concepts, and their bootstrap. Arrays only."""
