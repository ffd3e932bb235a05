"""What a study is: its file, its settings, one trial's configuration, events, results, and the error tree.

This package imports neither torch nor transformers, so that a mistake in a study file is answered at once.
"""
