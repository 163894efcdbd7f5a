"""Comparisons with PyTorch; they find the sample inputs in the folder above."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
