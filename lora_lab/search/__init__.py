"""The search: which trial comes next, and the database that remembers all of them (Optuna)."""
