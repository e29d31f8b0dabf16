"""Upload of what a model folder holds beside its weights to the Hugging Face hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

from vlmo.folder import file_in
from vlmo.folder.card import CARD, DATA_FILE, rename_card

_PROCESSOR = ("*processor_config.json", "tokenizer*.json")


def upload_beside(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str | None:
    """Upload processor and card of a folder, the card without its metrics and only if the hub has none.

    Arguments are those of transformers' `push_to_hub`.

    Raises:
        ValueError: A file is a link to elsewhere, whose content would be uploaded.

    Returns:
        The revision of the pull request, where one was opened.
    """
    folder, api = Path(folder), HfApi(token=token)
    files = [file for pattern in (*_PROCESSOR, CARD, DATA_FILE) for file in folder.glob(pattern)]
    if not files:
        return None
    files = [file_in(folder, file.name) for file in (*files, folder / "config.json")]
    repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repository, branch=revision, exist_ok=True)
    with TemporaryDirectory() as temporary:
        for file in files:
            shutil.copy(file, temporary)
        if api.file_exists(repository, CARD):
            Path(temporary, CARD).unlink(missing_ok=True)
        else:
            rename_card(temporary, title=repository)
        return api.upload_folder(
            repo_id=repository,
            folder_path=temporary,
            ignore_patterns="config.json",
            commit_message="Upload processor and card",
            revision=revision,
            create_pr=create_pr,
        ).pr_revision
