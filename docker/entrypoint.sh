#!/bin/sh
# Become the command that is given, with each secret that a variable NAME_FILE points at in the variable NAME:
# libpq and MLflow read passwords from the environment, and Compose mounts them as files.
set -eu
for name in PGPASSWORD MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD; do
    file=$(printenv "${name}_FILE" || true)
    if [ -n "$file" ]; then
        value=$(cat "$file")
        export "$name=$value"
        unset "${name}_FILE"
    fi
done
exec "$@"
