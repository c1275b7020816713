"""Removal of what trainings and tools wrap around a model's tensors: dictionaries in a file, prefixes of names."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from absl import logging

from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.tables import listed

# Entries of a file with a model in each; of several the first is read: averages, which published figures are of, before
# what they are averages of.
MODELS = ("teacher", "model_ema", "state_dict_ema", "ema", "student", "state_dict", "model", "net")

# Of DataParallel, torch.compile, DINO, and TimmWrapper. What has no such prefix beside them is the model's too.
PREFIXES = ("module", "_orig_mod", "backbone", "timm_model")


@dataclasses.dataclass(frozen=True)
class Unwrapped:
    """The tensors inside.

    Fields:
      tensors: without what is taken off their names.
      taken_off: entries and prefixes, from the outside in.
      left_out: names of tensors in the file that are of another entry.
      others: entries that hold a model too.
    """

    tensors: Tensors
    taken_off: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def say(self, path: Path) -> None:
        """Logs what was taken off or left out, if anything was."""
        if remarks := self.remarks():
            logging.warning("%s: %s", path, "; ".join(remarks))

    def remarks(self) -> list[str]:
        """Lists in words what was taken off or left out."""
        said = [f"taken off: {', '.join(self.taken_off)}"] if self.taken_off else []
        if self.others:
            said.append(f"read of several models: {self.taken_off[0]}; subtree={self.others[0]!r} reads another")
        if self.left_out:
            said.append(f"left out: {listed(self.left_out)}")
        if self.tensors.opaque:
            said.append(f"skipped as opaque: {listed(self.tensors.opaque)}")
        return said


def unwrap(tensors: Tensors, subtree: str = "", own: Collection[str] = ()) -> Unwrapped:
    """Takes off all wrappers, first the requested one, if any.

    Args:
      own: first parts of the model's own names, which are no wrappers: "model" of a language model.

    Raises ValueError if there is no such subtree, or two tensors would have one name.
    """
    opaque, taken, left, others = tensors.opaque, [], [], ()
    if subtree:
        inside = tensors.under(f"{subtree}.")
        if not inside:
            raise ValueError(f"no subtree {subtree!r}: its tensors lie under {listed(_tops(tensors))}")
        left += [name for name in tensors if not name.startswith(f"{subtree}.")]
        tensors, taken = inside, [subtree]
    while True:
        tops = _tops(tensors)
        kept = {entry for entry in own if not any(name.startswith(f"{entry}.{entry}.") for name in tensors)}
        if found := [entry for entry in MODELS if entry in tops and entry not in kept]:
            entry, *rest = found
            others = others or tuple(rest)
            left += [name for name in tensors if name.partition(".")[0] != entry]
            tensors = tensors.under(f"{entry}.")
        elif found := [prefix for prefix in PREFIXES if prefix in tops]:
            entry = found[0]
            tensors = tensors.renamed(lambda name, prefix=f"{entry}.": name.removeprefix(prefix))
        else:
            return Unwrapped(Tensors(tensors.entries, opaque), tuple(taken), tuple(left), others)
        taken.append(entry)


def _tops(tensors: Tensors) -> list[str]:
    """First parts of names that have several."""
    return list(dict.fromkeys(name.partition(".")[0] for name in tensors if "." in name))
