"""lm-evaluation-harness on trained trials: its tasks, asked of many adapters on one loaded base."""
