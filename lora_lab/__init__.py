"""lora_lab: hyperparameter sweeps for LoRA and QLoRA in which all trials share one frozen base model."""

__version__ = "0.1.0"
