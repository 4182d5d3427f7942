"""The MLflow record; the only package that imports mlflow.

DVC's outs are the truth: everything here can be rebuilt from them. A run is found by what it records, not by its
name: the tag ``result`` identifies a finished one, ``training`` one whose training is done.
"""

import os

# Read when mlflow is imported; what a person has set stays.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# It holds the user and password of the URI, and comes whenever something is logged; the stages say it once, without.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
