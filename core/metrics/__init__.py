"""Judging maps against labels: thresholds, curves, Dice, lesions, intervals."""
