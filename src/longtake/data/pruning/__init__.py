"""Dropping redundant training videos: scores, verdicts and pictures of them."""
