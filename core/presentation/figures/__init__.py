"""Plotly figures from results."""
