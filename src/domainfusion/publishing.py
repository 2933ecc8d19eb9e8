"""An exported model on the Hugging Face hub, for timm, `domainfusion.load` (once it is downloaded) and people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from domainfusion.errors import DomainFusionError, UsageError


def check_name(name: str) -> None:
    """Raise `UsageError` for what is no OWNER/NAME of the hub (which has the last word on it)."""
    part = r"[A-Za-z0-9](?:[\w.-]*\w)?"
    if not re.fullmatch(f"{part}/{part}", name, re.ASCII) or re.search(r"--|\.\.|\.git$", name) or len(name) > 96:
        raise UsageError(
            f"--push-to-hub {name}: write OWNER/NAME, of 96 letters, digits, '_', '-' and '.' at most, the last two "
            "alone and between others"
        )


def push_to_hub(folder: Path, files: Sequence[Path], name: str, *, private: bool = False) -> str:
    """Send `files`, a model exported to `folder`, to `name` (OWNER/NAME), made where there is none yet; its address.

    Raises `UsageError` where it is to be private and there is a public one already; `DomainFusionError` where the hub
    cannot be reached or does not let the user write there. What was exported stays in `folder`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    check_name(name)
    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:  # one that exists stays as it is
            raise UsageError(
                f"--private: {name} is on the hub already, and public; choose another name, or make it private there "
                f"first. Nothing was sent; the model is in {folder}"
            )
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=[path.name for path in files],
            commit_message="Model by domainfusion",
        )  # fmt: skip
    except UsageError:
        raise
    except HFValidationError as error:
        raise UsageError(f"--push-to-hub {name}: {error}; the model is in {folder}") from error
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise DomainFusionError(
            f"the hub refused {name} ({_first_line(error)}); log in with `hf auth login` as somebody who may write "
            f"there. The model is in {folder}"
        ) from error
    except Exception as error:  # the hub's library speaks through another HTTP library in each version
        raise DomainFusionError(
            f"the hub cannot be reached ({_first_line(error)}). The model is in {folder}; try the same command later"
        ) from error
    return str(address)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
