"""Dropping redundant training videos: scores and verdicts."""
