"""The multivariate Gaussian at each position, and Mahalanobis distances for every layer set from one fit."""
