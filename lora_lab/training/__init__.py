"""Training many LoRA adapters on one frozen base; knows nothing of the search, Optuna, MLflow or YAML.

It takes `TrialConfig`s and yields `TrialEvent`s. Read in this order: `packed/linear` (the one
idea), `packed/slot` (one trial's own state), `packed_engine` (the step), then the rest.
"""

import logging

# It warns at import about an optional kernel that is not needed; peft imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
