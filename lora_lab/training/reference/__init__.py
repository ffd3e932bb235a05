"""The reference engine's parts: `Trainer` + `peft`, one trial at a time."""
