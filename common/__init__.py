"""What every part needs and none is about: cli.py (flags), files.py (whole files), hf.py (HF's file format)."""

from pathlib import Path

HOME = Path(__file__).resolve().parent.parent


class UserError(ValueError):
    """What was wrong, where, and what would be right, in one line."""
