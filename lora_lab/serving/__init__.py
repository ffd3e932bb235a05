"""A server of a study's adapters on one loaded base, for trying them out: what `lora_lab.serve` starts."""
