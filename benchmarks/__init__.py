"""The measured comparisons, and how to repeat them."""

import sys
from pathlib import Path

# As Triton's Python backend does for the model.
sys.path.append(str(Path(__file__).resolve().parent.parent / "model_repository" / "chat" / "1"))
