"""A built-in base model and datasets, so that every part of lora_lab runs without a network or a GPU."""
