"""Tracking: a journal on disk that holds what happened, and a mirror of it in MLflow that people browse.

The sweep writes the journal; the mirror follows it from a thread of its own and may fail at any time without
the sweep noticing::

    with Journal(run_folder) as journal:                   # runs/<study_name>
        mirror = MlflowMirror(run_folder, tracking_uri)    # returns at once, MLflow is imported in the thread
        mirror.start()
        journal.append(study_started(spec, datasets=inputs))
        journal.append(trial_started(7, config, engine="packed"))
        for event in engine:                               # Logged, Evaluated, ...
            journal.append(event)
        journal.append(TrialEnded(number=7, state="complete", step=300, metrics=metrics))
        journal.append(Attached(number=7, path=adapter_folder, artifact_path="adapter"))
        journal.append(StudyEnded(state="complete"))
        note = mirror.close(timeout_s=30)                  # None, or one line to print

Later, `mirror.catch_up(run_folder)` sends what MLflow did not take, and `address.ui_command` is the command that shows
it.
"""
