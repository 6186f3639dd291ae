"""Masked video prediction: footage, drawn scenes, their frames and the puzzles made of them."""
