"""Features of a frozen image encoder, computed once for each image of a training and kept on disk for others like it.

A job with `config.feature_cache` asks a folder that is named by what the encoder is: its parameters, its fields and
the dtype. Images are told by their pixels, as operations leave them: one of several questions has its features once,
and another data set, or other operations, have those that they share. A table says for a data set which images its rows
have, so that a job for which all is there reads none of them.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import errors
from jaxtyping import Shaped

from vitvlm.core import config as config_lib
from vitvlm.core import flops, own_files
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.data import blanks, operations
from vitvlm.data.batches import eval_batches
from vitvlm.data.identity import Identity
from vitvlm.jobs import fields
from vitvlm.jobs.training.setup import Setup
from vitvlm.models.image_features import Features
from vitvlm.models.vlm import VLM
from vitvlm.nn import lora
from vitvlm.tasks import NextToken
from vitvlm.tasks.base import PIXELS, Batch, images_in_texts, with_features
from vitvlm.training import feature_store, freezing, integrity, sharding, workdir
from vitvlm.training.feature_store import FeatureStore
from vitvlm.training.interrupts import Interrupted, Interrupts
from vitvlm.training.state import TrainState

WHERE = "config.feature_cache"
PARTS = ("image", "scales")  # of the parameters: what the features are made with
_NOT_THEIRS = ("connector", "text", "image_token", "own_tokens", "prefix_lm")  # fields of the model
_BATCH = 16  # rows that are read, and images that are encoded, at a time, whatever the job's own batch size
_FILE_BYTES = 64 * 2**20
_FORMAT = 1
_MADE_FROM = "made_from.json"


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Features of all images of a job's training data.

    Attributes:
      grid: (h, w) of each image's features.
      store: the features.
      rows: of the data: the digests "images" [I] of each, and whether it is "whole": all its images can be read.
    """

    grid: tuple[int, int]
    store: FeatureStore
    rows: Shaped[np.ndarray, " rows"]

    def exchanged(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns a batch on the host with features in place of its images; see `tasks.base.with_features`."""
        index = batch["index"]
        images = np.zeros((len(index), *self.rows["images"].shape[1:]), feature_store.DIGEST)
        images[index >= 0] = self.rows["images"][index[index >= 0]]
        found = self.store[images]
        arrays = {name: np.ascontiguousarray(found[name]) for name in found.dtype.names if name != "digest"}
        return with_features(batch, Features(grid=self.grid, **arrays))

    def without_images(self, job: Setup) -> dict[str, Any]:
        """Arguments of `DataSetup.batches` by which images are not read again; none where operations need them."""
        pipeline = operations.parse(job.data.train.ops)
        if not blanks.allows(pipeline.bind(job.data.source.fields)):
            return {}
        source = blanks.Blanks(job.data.source, pipeline, np.flatnonzero(~self.rows["whole"]).tolist())
        return {"source": source, "ops": blanks.without_images(pipeline)}


def check(job: Setup) -> fields.FeatureCache | None:
    """Returns the section of a config, None without one. Raises ConfigError for features that cannot be kept."""
    if job.training.section.feature_cache is None:
        return None
    section = config_lib.call(fields.FeatureCache, job.training.section.feature_cache, WHERE)
    model = job.model.task.model
    if not (isinstance(job.model.task, NextToken) and isinstance(model, VLM)):
        raise ConfigError(
            f"{WHERE}: it is for model vlm and task next_token, and here is a {type(model).__name__}: leave it out"
        )
    if not any(path.startswith("image/") for path in flatten(job.model.variable_shapes["params"])):
        raise ConfigError(f"{WHERE}: config.model has no image encoder whose features could be kept: leave it out")
    if jax.process_count() > 1:
        raise ConfigError(f"{WHERE}: it is for one process, and there are {jax.process_count()}: leave it out")
    if job.data.source.streams and not job.data.section.balance:
        raise ConfigError(f"{WHERE}: {job.data.source.name} is streamed, so its rows have no numbers: prepare it first")
    for operation in operations.parse(job.data.train.ops).operations:
        if operation.function.random and operation.function.on_image:
            raise ConfigError(
                f"{WHERE}: the operation {operation.text} of config.data.train.ops is random, so images and their "
                "features differ each epoch: take it out, or leave the cache out"
            )
    _check_frozen(job)
    return section


def _check_frozen(job: Setup) -> None:
    """Raises ConfigError for an encoder whose features change, or are random, in training."""
    trained = (lora.base_path(p) if lora.is_adapter(p) else p for p in flatten(job.training.state_shapes.params))
    trained = [path for path in trained if path.split("/")[0] in PARTS]
    if trained:
        raise ConfigError(
            f"{WHERE}: {trained[0]!r} trains, so features change with each step: freeze the image encoder by "
            "config.optimizer.freeze (and leave it out of config.lora.rules), or leave the cache out"
        )
    kept = [path for path in flatten(job.training.state_shapes.collections) if path.split("/")[1] in PARTS]
    if kept:
        raise ConfigError(f"{WHERE}: {kept[0]!r} changes in training, though the encoder is frozen: leave it out")
    try:
        jax.eval_shape(_encoder(job), _variable_shapes(job), job.model.example_batch)
    except errors.InvalidRngError:
        raise ConfigError(
            f"{WHERE}: the image encoder draws random numbers in training: set dropout, attention_dropout and "
            "drop_path of config.model.image to 0, or leave the cache out"
        ) from None


def begin(
    job: Setup, section: fields.FeatureCache, state: TrainState, say: Callable[[str], None], interrupts: Interrupts
) -> FeatureCache:
    """Returns the features of all images of a training, computed where they are not there yet.

    A job that is killed goes on behind the last file. A second job waits for the first. Where there are features of
    others, but not of this encoder or these data, `say` is told what differs.

    Raises ConfigError for a folder that cannot be written or is another encoder's, and for numbers beyond float16;
    Interrupted after SIGTERM.
    """
    shapes = jax.eval_shape(_encoder(job), _variable_shapes(job), job.model.example_batch)
    dtype = _row(shapes, section.dtype)
    encoder, data = _described_encoder(job, state, dtype), _described_data(job)
    folder, table = pathlib.Path(section.path) / _key(encoder), f"rows-{_key(data)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, say):
            encoders, tables = folder.parent.glob(f"*/{_MADE_FROM}"), folder.glob("rows-*.json")
            _sign(folder / _MADE_FROM, encoder, sorted(encoders), "this encoder", say)
            _sign(folder / f"{table}.json", data, sorted(tables), "these data", say)
            store = FeatureStore(folder, folder.name, dtype)
            store.open(say)
            rows = store.table(table, say)
            new = rows is None or not all(each.tobytes() in store for each in np.unique(rows["images"]))
            if new:
                rows = _fill(job, state, store, shapes, say, interrupts)
                store.write_table(table, rows)
    except OSError as error:
        raise ConfigError(f"{WHERE}.path: {folder} cannot be used: {error}") from error
    count = len(np.unique(rows["images"]))
    what = f"features of {count:,} images in {len(rows):,} rows, {count * dtype.itemsize / 1e6:,.1f} MB"
    say(f"{what}: {'computed and kept' if new else 'found'} in {folder}")
    return FeatureCache(shapes.grid, store, rows)


def spared_flops(job: Setup) -> int:
    """FLOPs of the encoder's forward pass on one example, which a step with features does not have."""
    return flops.count(_encoder(job), _variable_shapes(job), job.model.example_batch)


def _fill(
    job: Setup,
    state: TrainState,
    store: FeatureStore,
    shapes: Features,
    say: Callable[[str], None],
    interrupts: Interrupts,
) -> Shaped[np.ndarray, " rows"]:
    """Reads all rows once, and computes the features of images that the store does not have; returns the table."""
    encoding = _Encoding(job, state, store)
    source, places = job.data.source, shapes.values.shape[1:2]
    rows = np.zeros(len(source), [("images", feature_store.DIGEST, places), ("whole", bool)])
    batches = eval_batches(
        source,
        job.data.train.ops,
        _BATCH,
        seed=job.data.seed,
        workers=job.data.section.workers,
        max_unreadable_fraction=job.data.section.max_unreadable_fraction,
    )
    bad, read, said = 0, 0, 0
    for batch in batches:
        if signal := interrupts.requested(0):
            encoding.write()
            raise Interrupted(
                f"{signal}: stopped as features were computed; those of {encoding.done:,} images are kept"
            )
        real = np.flatnonzero(batch["example_mask"])
        rows["images"][batch["index"][real]] = encoding.take(batch, real)
        # An image may be missing among those of a packed row, whose others it moves: all of the batch are read again.
        rows["whole"][batch["index"][real]] = batches.bad.count == bad
        bad, read = batches.bad.count, read + int(np.sum(batch["index"] >= 0))
        if read - said >= len(rows) / 10:
            said = read
            say(f"features: {read:,} of {len(rows):,} rows read, {encoding.done:,} images encoded")
    encoding.end()
    return rows


class _Encoding:
    """Encodes images that a store does not have, so many at a time, and writes their features a file at a time.

    Attributes:
      done: number of images that were encoded.
    """

    def __init__(self, job: Setup, state: TrainState, store: FeatureStore):
        self.done = 0
        self._store, self._mesh, self._variables = store, job.model.mesh, state.variables()
        self._encode = jax.jit(sharding.keep_examples_split(_encoder(job), self._mesh))
        shards = math.prod(self._mesh.shape[axis] for axis in sharding.BATCH_AXES if axis in self._mesh.shape)
        self._size = math.lcm(_BATCH, shards)
        self._waiting: dict[bytes, dict[str, np.ndarray]] = {}
        self._made: list[np.ndarray] = []
        self._known: set[bytes] = set()

    def take(self, batch: Mapping[str, np.ndarray], real: Sequence[int]) -> Shaped[np.ndarray, "real I"]:
        """Returns the digests of the images in rows of a batch, which are encoded in their turn."""
        pixels = {name: batch[name] if "images" in batch else batch[name][:, None] for name in PIXELS if name in batch}
        count = next(iter(pixels.values())).shape[1]
        digests = np.zeros((len(real), count), feature_store.DIGEST)
        for place in np.ndindex(digests.shape):
            own = {name: value[real[place[0]], place[1]] for name, value in pixels.items()}
            digests[place] = which = feature_store.digest(*own.values())
            if which not in self._known and which not in self._store:
                self._known.add(which)
                self._waiting[which] = {name: value.copy() for name, value in own.items()}
        while len(self._waiting) >= self._size:
            self._compute()
        return digests

    def end(self) -> None:
        """Encodes and writes what is left."""
        if self._waiting:
            self._compute()
        self.write()

    def write(self) -> None:
        """Writes what is encoded."""
        if self._made:
            self._store.add(np.concatenate(self._made))
            self._made = []

    def _compute(self) -> None:
        digests = list(self._waiting)[: self._size]
        images = [self._waiting.pop(which) for which in digests]
        images += images[-1:] * (self._size - len(images))  # compiled for one number
        together = {name: np.stack([each[name] for each in images]) for name in images[0]}
        if "images" in together:
            together = {name: value[:, None] for name, value in together.items()}
        features = self._encode(self._variables, sharding.put_batch(together, self._mesh))
        self._made.append(_as_rows(features, digests, self._store.dtype))
        self.done += len(digests)
        if sum(rows.nbytes for rows in self._made) >= _FILE_BYTES:
            self.write()


def _as_rows(features: Features, digests: Sequence[bytes], dtype: np.dtype) -> Shaped[np.ndarray, " n"]:
    rows = np.zeros(len(digests), dtype)
    rows["digest"] = np.array(digests, feature_store.DIGEST)
    with np.errstate(over="ignore"):  # which is looked for below
        for name in dtype.names[1:]:
            rows[name] = np.asarray(getattr(features, name))[: len(digests), 0]
    if not np.isfinite(rows["values"]).all():
        raise ConfigError(
            f"{WHERE}.dtype: features are not finite, or beyond what {rows['values'].dtype} holds: take float32, or "
            "look at the encoder's weights"
        )
    return rows


def _row(shapes: Features, dtype: str) -> np.dtype:
    """The dtype of an image's row: features, and what goes along with them."""
    arrays = [("digest", feature_store.DIGEST), ("values", dtype, shapes.values.shape[2:])]
    arrays += [("mask", "bool", shapes.mask.shape[2:])] if shapes.mask is not None else []
    arrays += [("grids", "int32", shapes.grids.shape[2:])] if shapes.grids is not None else []
    return np.dtype(arrays)


def _encoder(job: Setup) -> Callable[[Mapping[str, Any], Batch], Features]:
    """The function of variables and a batch that gives the features of its images, as a training step computes them."""
    model = job.model.task.model

    def encode(variables: Mapping[str, Any], batch: Batch) -> Features:
        return model.apply(variables, images_in_texts(batch), train=True, method="image_features")

    return encode


def _variable_shapes(job: Setup) -> dict[str, Any]:
    shapes = job.model.stored_shapes
    return {**shapes, "params": jax.eval_shape(lora.attach, shapes["params"])}


def _described_encoder(job: Setup, state: TrainState, dtype: np.dtype) -> dict[str, Any]:
    """Returns all that the features of given pixels follow from, as JSON."""
    params = freezing.join(state.params, state.frozen)
    return _as_json(
        {
            "format": _FORMAT,
            "parameters": integrity.fingerprints({name: params[name] for name in PARTS if name in params}),
            "model": {name: value for name, value in job.model.section.items() if name not in _NOT_THEIRS},
            "features": {name: str(dtype[name]) for name in dtype.names},
        }
    )


def _described_data(job: Setup) -> dict[str, Any]:
    """Returns all that the pixels of a training's rows follow from, as JSON."""
    split, source = job.data.train, job.data.source
    return _as_json(
        {
            "operations": split.ops,
            "source": [split.source, split.split, split.labels_fraction, source.name],
            "files": Identity.of(source).digest,
            "rows": hashlib.blake2b("\0".join(source.ids).encode(), digest_size=16).hexdigest(),
        }
    )


def _as_json(described: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(described, default=str))


def _key(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _sign(
    path: pathlib.Path,
    described: Mapping[str, Any],
    others: Sequence[pathlib.Path],
    what: str,
    say: Callable[[str], None],
) -> None:
    """Writes what features are made from beside them, and names what differs from the most similar of `others`.

    Raises ConfigError if something else is written there.
    """
    before = own_files.read(path) if path in others else None
    if before is None:
        known = {other: own_files.read(other) for other in others if other != path}
        differing = {other: workdir.differing(made, described, ()) for other, made in known.items() if made}
        if differing:
            nearest = min(differing, key=lambda other: len(differing[other]))
            say(f"features of {what} are new here: {integrity.some(differing[nearest])} differ from {nearest}")
        own_files.write(path, described)
    elif names := workdir.differing(before, described, ()):
        raise ConfigError(
            f"{WHERE}.path: {path} is of other features ({integrity.some(names)} differ), copied or renamed: delete "
            f"{path.parent}, or choose another path"
        )


@contextlib.contextmanager
def _alone(folder: pathlib.Path, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other job of this machine fills the folder; a job that is killed lets go of it."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder}: another job computes these features; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
