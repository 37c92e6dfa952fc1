"""push_to_hub(model, "OWNER/NAME"): a pruned model as a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from ..errors import PruneError, shown
from ..load.checkpoint import one_line
from ..load.saved import TRAVELS
from .save import Savable, save_pretrained

MODEL = "model"


def push_to_hub(
    model: Savable,
    repository: str,
    evidence: Any = None,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    **options: Any,
) -> str:
    """Save a pruned model and upload it -> the address of the commit. The repository is made where there is none.

    evidence, options: as for `save_pretrained`. private: of a new repository; token: by default that of `hf auth login`; revision: a branch.
    `sparsight.load("hf_hub:OWNER/NAME")`, or `load_vlm("OWNER/NAME")`, gives the model back. Raises PruneError.
    """
    from huggingface_hub import HfApi

    if not isinstance(repository, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise PruneError(f"a repository is OWNER/NAME, got {shown(repository)}")
    with tempfile.TemporaryDirectory() as name:
        folder = save_pretrained(model, Path(name) / MODEL, evidence, **options)
        try:
            hub = HfApi(token=token)
            hub.create_repo(repository, private=private, exist_ok=True)
            done = hub.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message=message or "A pruned model of Sparsight",
                allow_patterns=list(TRAVELS),
            )  # fmt: skip
        except Exception as error:  # whatever the hub client or the network meets
            raise PruneError(
                f"the model cannot be pushed to {repository} ({one_line(error)}); log in with `hf auth login`, or write it with "
                "sparsight.save_pretrained and upload the folder later"
            ) from error
    return str(done.commit_url)
