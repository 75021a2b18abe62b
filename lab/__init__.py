"""What the four scripts stand on. Nothing here is imported by data/ or model.py."""
