"""What `gpu_once.py` measures: the run that starts items (`run`), a module for each family of them, and the table."""
