"""The packed engine's parts: many trials in one forward and backward pass."""
