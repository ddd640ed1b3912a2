"""The measured comparisons, and how to repeat them."""
