"""Conversations about images and videos: files, media, and batches to learn from."""
