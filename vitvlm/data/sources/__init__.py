"""Random-access sources of labelled images, by a spec: "emoji", "tfds:fashion_mnist", "folder:PATH", "stamps", …"""

import numpy as np

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import splits
from vitvlm.data.names import readable
from vitvlm.data.sources import (
    asked,
    conversing,
    each,
    folder,
    idx,
    listed,
    mixture,
    prepared,
    scenes,
    stamps,
    webdataset,
)
from vitvlm.data.sources.base import Example, Source, Subset, check_classes
from vitvlm.data.sources.labels import USUAL, Labelling
from vitvlm.data.sources.relabelled import Relabelled, absent, placed, renamed
from vitvlm.data.sources.scored import Scores, scored

__all__ = [
    "Example",
    "Labelling",
    "Relabelled",
    "Scores",
    "Source",
    "Subset",
    "absent",
    "check_classes",
    "open",
    "placed",
    "renamed",
    "scored",
]

_OPENERS = {
    "emoji": lambda label, split, data_dir: prepared.open_emoji(label or "group", split),
    "tfds": prepared.open_tfds,
    "coco": lambda place, split, data_dir: listed.open_coco(place, split),
    "easy_vqa": lambda place, split, data_dir: asked.open_easy_vqa(place, split),
    "folder": lambda path, split, data_dir: folder.FolderSource(path, split),
    "idx": lambda path, split, data_dir: idx.IdxSource(path, split),
    "llava": lambda place, split, data_dir: conversing.open_llava(place, split),
    "scenes": lambda options, split, data_dir: scenes.open_scenes(options, split),
    "stamps": lambda place, split, data_dir: stamps.open_stamps(place, split),
    "visual_genome": lambda place, split, data_dir: asked.open_visual_genome(place, split),
    "vqa": lambda place, split, data_dir: asked.open_vqa(place, split),
}

# Those whose labels can be told where they are.
_WITH_LABELLING = {"csv": listed.open_csv, "jsonl": listed.open_jsonl, "webdataset": webdataset.TarSource}


def open(
    spec: str,
    split: str,
    data_dir: str | None = None,
    labels_fraction: float = 1.0,
    seed: int = 0,
    labelling: Labelling = USUAL,
) -> Source:
    """Opens a split of a data set.

    Args:
      spec: where the images are:
        "emoji" or "emoji:subgroup"  the embedded emoji set, labelled by group (default) or by subgroup;
        "tfds:NAME"                  a TFDS data set, prepared in `data_dir` as ArrayRecord;
                                     "tfds:fashion_mnist" also reads the files of Debian's dataset-fashion-mnist;
        "tfds:PATH"                  the directory of a prepared TFDS data set (the one with dataset_info.json);
        "folder:PATH"                one directory per class, below train/ and test/ (or val/ …) if these are there;
                                     see `layouts`;
        "jsonl:PATH"                 a JSON object per line with "image", a path from the file's folder, "caption" (one
                                     or a list), and perhaps "label" and "split"; rows of one image are one example;
                                     or records: "text", a chat in "messages" or "conversations", or "instruction",
                                     "prompt" or "question" with "output" or "answer"; with "image", "images" or
                                     "video", if any: each row is an example, see `records.RecordSource`;
        "llava:PATH.json" or "llava:PATH.json:IMAGES"  LLaVA's conversations, see `conversing.open_llava`;
        "vqa:QUESTIONS.json:IMAGES"  VQAv2, a question each, with all its answers; see `asked.open_vqa`;
        "visual_genome:FILE.json:IMAGES"  Visual Genome's questions or regions, see `asked.open_visual_genome`;
        "easy_vqa"                   easy-VQA's questions, where PyPI's easy-vqa is installed; labelled by answer;
                                     "easy_vqa:colour,shape" those of these types ("yes_no" is the third);
        "csv:PATH"                   the same, of images, with columns named by the first line;
        "coco:PATH/annotations/captions_NAME.json"  COCO's captions, images in PATH/NAME/, or "coco:JSON:IMAGES";
        "each:caption:SOURCE"        an example for each text in a field of another source; see `each.EachText`;
        "mix:3*emoji+1*jsonl:PATH"   several sources by weight, each in this split, slice and labels_fraction;
                                     see `mixture.MixedSource`;
        "idx:PATH"                   a directory with MNIST's four files, gzipped or not;
        "stamps" or "stamps:photos"  Tux Paint's captioned cut-outs, labelled by category, where Debian's
                                     tuxpaint-stamps-default has installed them; all, or the photographs;
        "stamps:ja" or "stamps:photos,ja,pt_BR"  those that are told in these languages besides English;
        "webdataset:PATTERN"         tars of KEY.jpg, KEY.txt, KEY.json and KEY.cls, gzipped or not:
                                     "webdataset:PATH/{00000..00099}.tar", "webdataset:PATH/*.tar"; split "all";
                                     training streams them;
        "scenes" or "scenes:OPTIONS" coloured shapes made on the fly, with captions, hard negatives, questions, boxes
                                     and masks: "scenes:side=96,train=20000,test=1000,most=3,seed=1";
                                     "scenes:ask" has an example for each question, "scenes:ask,planted=0.2" a fifth of
                                     them with answers that need no image, or are another image's.
      split: "train", "test", or a slice of them: "train[:10%]", "train[500:1000]", "test[-100:]".
      data_dir: where TFDS keeps data sets; default: the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
      labels_fraction: keep this share of each class (at least one example), chosen by `seed` and nothing else; of a
        multi-label source, this share of its images.
      seed: of the choice above.
      labelling: where the labels of jsonl, csv and webdataset are and what they mean, if not as usual.

    Raises:
      ConfigError: for a spec or split that cannot be meant.
      DataError: for data that are not there or cannot be used.
    """
    kind, _, place = spec.partition(":")
    shown = readable(spec)
    kinds = (*_OPENERS, *_WITH_LABELLING, "each", "mix")
    if kind not in kinds:
        raise ConfigError(f"data source {spec!r}: no such kind {kind!r}; {suggest(kind, kinds)}")
    wanted = splits.parse(split)
    if kind == "each":
        field, _, rest = place.partition(":")
        if not rest:
            raise ConfigError(f"data source {shown!r}: write each:FIELD:SOURCE, as in each:caption:coco:PATH")
        source = each.EachText(open(rest, split, data_dir, labels_fraction, seed, labelling), field)
        source.name = f"{shown} {wanted}"
        return source
    if kind == "mix":  # slices of its positions would share examples, as a source begins again
        source = mixture.open_mixture(
            place, kinds, lambda part: open(part, split, data_dir, labels_fraction, seed, labelling)
        )
        source.name = f"{shown} {wanted}"
        return source
    if labelling.separator is not None and kind != "csv":
        raise ConfigError(f"data source {shown!r}: label_separator is for csv; several labels are a list elsewhere")
    if kind in _WITH_LABELLING:
        source = _WITH_LABELLING[kind](place, wanted.name, labelling)
    elif labelling != USUAL:
        raise ConfigError(
            f"data source {shown!r}: its labels are where they are: label, label_separator and label_names are for "
            f"{', '.join(sorted(_WITH_LABELLING))}"
        )
    else:
        source = _OPENERS[kind](place, wanted.name, data_dir)
    name = f"{shown} {wanted}"
    source.name = name
    if wanted.start is not None or wanted.stop is not None or not source.streams:
        selected = wanted.indices(len(source))
        if len(selected) < len(source):
            source = Subset(source, selected, name)
    if labels_fraction != 1.0:
        # Sets of labels are no strata: of a multi-label source, it is that share of the images.
        strata = np.zeros(len(source), np.int32) if source.multi_label else source.labels
        chosen = splits.stratified_fraction(source.ids, strata, labels_fraction, seed)
        source = Subset(source, chosen, f"{name}, {labels_fraction:.4g} of the labels (seed {seed})")
    return source
