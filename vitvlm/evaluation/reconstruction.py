"""Masked autoencoding: the loss over a data set under fixed masks, and pictures of the reconstructions."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from vitvlm.evaluation import base, bootstrap, classification, pictures
from vitvlm.models.mae import denormalise
from vitvlm.nn import patches

_Sample = dict[int, tuple[np.ndarray, dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Reconstruction(base.Evaluator):
    """Scores the prediction function `reconstruct`: loss [B], mask [B, N] (1 = hidden), reconstruction [B, N, P*P*C].

    The task draws each example's mask from the example's index alone, so the figure does not depend on the batch size
    and two models see the same masks. Metrics: loss with its bootstrap interval, masked_share and n. Writes
    `examples.npz` (index, loss) and `reconstruction.png`: the original, what was visible, and the prediction pasted in.
    """

    batches: base.Batches
    patch_size: tuple[int, int]
    norm_pix: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    output: str = "reconstruct"
    max_images: int = 8

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("loss", "masked_share", "n")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"output": self.output}

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        sample: _Sample = {}

        def outputs(batch: base.Batch) -> base.Arrays:
            arrays = {
                name: np.asarray(array, np.float32) for name, array in predict(self.output, variables, batch).items()
            }
            self._keep(sample, batch, arrays)
            return {"loss": arrays["loss"], "masked": arrays["mask"].mean(axis=1)}

        whole = base.collect(self.batches, outputs)
        bootstrap.save_examples(folder, whole["index"], loss=whole["loss"])
        loss = bootstrap.mean(whole["loss"])
        metrics = {"loss": loss.estimate, "loss_low": loss.low, "loss_high": loss.high}
        metrics |= {"masked_share": float(whole["masked"].mean()), "n": float(len(whole["loss"]))}
        scale = "per patch" if self.norm_pix else "by channel"
        protocol = (
            f"mean squared error on masked patches, pixels normalised {scale}, {metrics['masked_share']:.0%} masked, "
            f"masks fixed by example index, n={len(whole['loss'])}, {classification.interval_protocol()}"
        )
        path = pathlib.Path(folder) / "reconstruction.png"
        note = "hidden patches are shown with their true mean and contrast, which norm_pix leaves out of the prediction"
        rows = [self._rows(index, *sample[index]) for index in sorted(sample)]
        pictures.save_reconstructions(path, rows, note if self.norm_pix else "")
        return base.Result(metrics, protocol, (path,) if sample else ())

    def _keep(self, sample: _Sample, batch: base.Batch, arrays: base.Arrays) -> None:
        """Keeps the examples to show: spread over the set, the same ones for every batch size."""
        for row in np.flatnonzero(np.asarray(batch["example_mask"]) > 0):
            sample[int(batch["index"][row])] = (
                np.asarray(batch["image"][row]),
                {name: array[row] for name, array in arrays.items()},
            )
            if len(sample) > self.max_images:
                del sample[max(sample, key=_scatter)]

    def _rows(self, index: int, image: Float[np.ndarray, "H W C"], arrays: base.Arrays) -> pictures.Reconstruction:
        hidden = arrays["mask"] > 0.5
        target = np.asarray(patches.patchify(image[None], self.patch_size))[0]
        predicted = arrays["reconstruction"]
        if self.norm_pix:
            predicted = np.asarray(denormalise(predicted[None], target[None]))[0]
        pasted = np.where(hidden[:, None], predicted, target)
        grid = patches.patch_grid(image.shape[:2], self.patch_size)
        return pictures.Reconstruction(
            title=f"#{index}   loss {arrays['loss']:.3f}",
            original=self._pixels(image),
            hidden=_spread(hidden, grid, self.patch_size),
            pasted=self._pixels(np.asarray(patches.unpatchify(pasted[None], grid, self.patch_size))[0]),
        )

    def _pixels(self, image: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        """Model input as colours in 0..1."""
        return np.clip(image * np.asarray(self.std) + np.asarray(self.mean), 0, 1)


def _spread(hidden: Bool[np.ndarray, " N"], grid: tuple[int, int], patch: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    return np.kron(hidden.reshape(grid), np.ones(patch, bool)).astype(bool)


def _scatter(index: int) -> int:
    """A fixed pseudo-random order of examples (Knuth's multiplicative hash)."""
    return index * 2654435761 % 2**32
