"""What a machine offers to a study, and what would be in its way: what `lora_lab.doctor` says."""
