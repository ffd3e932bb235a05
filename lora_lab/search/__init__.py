"""The search: Optuna's samplers, pruners and storage behind one door, the `StudyStore`."""
