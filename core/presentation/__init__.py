"""What screens and reports say: words, figures, views for pages, the report."""
