"""A trained model on the Hugging Face Hub: what is written for others, uploaded as one commit."""

import shutil
import tempfile
from pathlib import Path

import yaml

from u2seg.config.config_file import read_config_file
from u2seg.engine.release import CARD, CONFIG, WEIGHTS, write_release
from u2seg.utils.files import atomic_path, read_json
from u2seg.utils.hub_files import HUB_PREFIX

LABEL_MAP = "label_map.json"
_FILES = (CARD, CONFIG, LABEL_MAP, WEIGHTS)

_USE_BY_NAME = """
Or by its name on the Hub:

```bash
u2seg predict PHOTOS --config-file hf://{repository}/config.yaml --output predictions
```
"""


class HubUploadError(OSError):
    """The Hub did not take a model; the message says why and what to do."""


def write_hub_files(
    run_directory: str | Path,
    output: str | Path,
    repository: str,
    *,
    label_map: str | Path | None = None,
    license_id: str = "other",
) -> Path:
    """Returns a directory with everything that a model's repository holds: weights, settings, model card and, if any, label map.

    Args:
        run_directory: ``OUTPUT_DIR`` of a training, or the output of ``u2seg run``, whose model it then is.
        output: directory to write; other files in it are left alone.
        repository: ``org/name``; the settings name the weights there, so that they need no other argument to predict with.
        label_map: saved label map that gives clusters names; None: the run's own, where it was scored.
        license_id: license of the weights, as the Hub spells it.

    Raises:
        FileNotFoundError: no training, no checkpoint or no label map is there.
        ValueError: ``label_map`` is none.
    """
    run, output = Path(run_directory), Path(output)
    if not (run / CONFIG).is_file() and (run / "model" / CONFIG).is_file():
        run = run / "model"
    chosen = Path(label_map) if label_map else _own_label_map(run)
    with tempfile.TemporaryDirectory() as directory:
        # The release takes the model's name from its directory.
        released = write_release(run, Path(directory) / repository.rpartition("/")[2], license_id=license_id).directory
        settings = read_config_file(released / CONFIG)
        settings["MODEL"]["WEIGHTS"] = f"{HUB_PREFIX}{repository}/{WEIGHTS}"
        (released / CONFIG).write_text(yaml.safe_dump(settings), encoding="utf-8")
        with (released / CARD).open("a", encoding="utf-8") as card:
            card.write(_USE_BY_NAME.format(repository=repository))
        for path in released.iterdir():
            _copy(path, output / path.name)
    if chosen is not None:
        if not {"thing_clusters", "categories"} <= read_json(chosen).keys():
            raise ValueError(f"{chosen} is no label map; expected one that scoring saved, label_map_PROTOCOL.json")
        _copy(chosen, output / LABEL_MAP)
    return output


def upload(directory: str | Path, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Uploads what :func:`write_hub_files` wrote, in one commit, and returns the commit's address.

    Args:
        directory: with the files.
        repository: ``org/name``; made if it is not there.
        private: whether a repository that is made can be seen by its owners alone.
        revision: branch; None: the main one.

    Raises:
        HubUploadError: the Hub cannot be reached or refuses.
        ValueError: ``repository`` is no name of a repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repository)
    if repository.count("/") != 1:
        raise ValueError(f"a model's repository is named org/name, got {repository!r}")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            revision=revision,
            allow_patterns=list(_FILES),
            commit_message="Upload by u2seg push",
        ).commit_url
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubUploadError(
            f"{repository} could not be uploaded: {reason}. `hf auth login` stores the token that the Hub asks for; what was to be "
            f"uploaded is in {directory}"
        ) from error


def _own_label_map(run: Path) -> Path | None:
    """Returns the label map of the run's first protocol, as its scores list them; None for a run without scores."""
    for metrics in sorted(run.glob("inference/*/metrics.json")):
        settings = read_config_file(run / CONFIG)
        for protocol in settings.get("TEST", {}).get("PROTOCOLS", ()):
            path = metrics.parent / f"label_map_{protocol}.json"
            if path.is_file():
                return path
    return None


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
