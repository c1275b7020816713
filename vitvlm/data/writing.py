"""Data sets written as TFDS keeps them, in ArrayRecord, whole or not at all; `sources` reads them as "tfds:PATH"."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from vitvlm.data.errors import DataError

INFO = "dataset_info.json"  # what makes a directory a prepared data set


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` to write into; it takes that name once all has been written, and not before.

    After an error nothing is left. A process that is killed may leave the hidden folder; the next one removes it.

    Raises DataError if `folder` is there already, or cannot be made.
    """
    if folder.exists():
        raise DataError(f"{folder} is there already; write to another place, or remove it first")
    draft = folder.parent / f".{folder.name}.incomplete"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}; choose another place") from error
    try:
        yield draft
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write(
    folder: Path,
    name: str,
    features: Mapping[str, tfds.features.FeatureConnector],
    splits: Mapping[str, Iterable[tuple[Any, Mapping[str, Any]]]],
    shuffled: bool = False,
    **info: Any,
) -> None:
    """Writes one data set into an existing folder, over files of the same names; `INFO` comes last.

    Args:
      folder: where dataset_info.json, features.json and the records go.
      name: what the files are called.
      features: of an example, by name.
      splits: for each split (key, example) pairs; keys differ within a split.
      shuffled: in the order of a hash of the keys, else as they come, and then the keys are rising numbers.
      **info: what else `tfds.core.DatasetInfo` says: description, homepage, license.
    """

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=not shuffled,
                **info,
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterable]:
            return dict(splits)

        def _generate_examples(self) -> None:
            """TFDS asks for this method; the splits hold their examples."""

    Builder.name = name
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as work:
        builder = Builder(data_dir=work, file_format="array_record")
        with _quietly():
            builder.download_and_prepare()
        written = Path(builder.data_path)
        for path in sorted(written.iterdir(), key=lambda path: path.name == INFO):
            path.replace(folder / path.name)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silences TFDS's progress bars and announcements, which name irrelevant folders."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
