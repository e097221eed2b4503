"""From a data set to a request body."""

import os

# `datasets` and `huggingface_hub` read these when they are imported. Without them, a download is also counted at the
# hub's maker, and its requests carry more about this machine than the versions of the two.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
