"""From a data set to a request body."""

import os

# `datasets` and `huggingface_hub` read these on import. They turn off download counting and telemetry, so that requests
# contain nothing about this machine but the versions of the two packages.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
