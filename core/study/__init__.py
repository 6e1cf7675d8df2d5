"""The use-cases that the command line and the pages share: prepare, pretrain, fit, score, evaluate, compare.

Each stage commits whole directories and skips what is committed, so a killed command goes on where it stopped.
"""
