"""A trained model on the Hugging Face Hub: what is written for others, uploaded as one commit."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from u2seg.config.config_file import read_config_file
from u2seg.engine.release import CARD, CONFIG, WEIGHTS, write_release
from u2seg.utils.files import atomic_path, read_json, write_json
from u2seg.utils.hub_files import HUB_PREFIX

LABEL_MAP = "label_map.json"
_FILES = (CARD, CONFIG, LABEL_MAP, WEIGHTS)
# What a label map's provenance says in paths of the machine that fitted it; the second one in maps of version 0.1.
_PATH_KEYS = {"weights", "last_checkpoint", "fitted_on"}

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
        output: directory to write, another one than the training's; other files in it are left alone, but for a label map of an
            earlier call where this model has none.
        repository: ``org/name``; the settings name the weights there, so that they need no other argument to predict with.
        label_map: saved label map that gives clusters names, written without the paths of this machine; None: the run's own, where
            it was scored.
        license_id: license of the weights, as the Hub spells it.

    Raises:
        FileNotFoundError: no training, no checkpoint or no label map is there.
        ValueError: ``repository`` is no name of a repository, ``output`` is the training's directory, or ``label_map`` is no label
            map.
    """
    _require_repository_name(repository)
    run, output = Path(run_directory), Path(output)
    if not (run / CONFIG).is_file() and (run / "model" / CONFIG).is_file():
        run = run / "model"
    if output.resolve() in (run.resolve(), Path(run_directory).resolve()):
        raise ValueError(
            f"the output directory {output} is the training's own, whose {CONFIG} would be overwritten; choose another one"
        )
    chosen = Path(label_map) if label_map else _own_label_map(run)
    names = None if chosen is None else _read_label_map(chosen)
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
    if names is None:
        (output / LABEL_MAP).unlink(missing_ok=True)
    else:
        write_json(output / LABEL_MAP, names)
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

    _require_repository_name(repository)
    # The HTTP library's own errors, a failed connection for example, are not all wrapped. Its name depends on huggingface_hub's
    # version.
    http_error: Any = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
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
    except (http_error, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubUploadError(
            f"{repository} could not be uploaded: {reason}. `hf auth login` stores the token that the Hub asks for; what was to be "
            f"uploaded is in {directory}"
        ) from error


def _require_repository_name(repository: str) -> None:
    """Refuses what is not ``org/name``, with characters that the Hub allows."""
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repository)
    if repository.count("/") != 1:
        raise ValueError(f"a model's repository is named org/name, got {repository!r}")


def _read_label_map(path: Path) -> dict[str, Any]:
    """Returns the content of a label map, its provenance without the paths of this machine."""
    content = read_json(path)
    if not isinstance(content, dict) or not {"thing_clusters", "categories"} <= content.keys():
        raise ValueError(f"{path} is no label map; expected one that scoring saved, label_map_PROTOCOL.json")
    provenance = content.get("provenance", {})
    return {**content, "provenance": {key: provenance[key] for key in provenance if key not in _PATH_KEYS}}


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
