"""What a training step needs, predicted without a device and counted on one."""
