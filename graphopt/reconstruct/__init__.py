"""Recovery by least squares: from what a changed model reads to what the original computed."""
