"""What finished trials say: verdict, trade-offs and confounds, as pure functions on `TrialResult` lists.

Nothing here draws, stores or trains, and nothing imports torch, plotly or Optuna.
"""
