"""Tasks by name: a model, an objective, and what can be predicted. See base.py for the contract."""

import functools

from flax import linen as nn

from vitvlm.core.registry import Registry
from vitvlm.models.blip import BlipVQA
from vitvlm.models.blip2 import Blip2QFormer
from vitvlm.models.blip_parts import BlipBase
from vitvlm.models.decoder import Decoder
from vitvlm.models.mae import MAE
from vitvlm.models.t5 import T5
from vitvlm.models.two_towers import TwoTowers
from vitvlm.models.vlm import VLM
from vitvlm.tasks.base import Batch, PredictFn, Task, Variables
from vitvlm.tasks.blip import Blip
from vitvlm.tasks.classify import Classify
from vitvlm.tasks.coca import CoCa
from vitvlm.tasks.contrast import Contrast
from vitvlm.tasks.encode import Encode
from vitvlm.tasks.next_token import NextToken
from vitvlm.tasks.qformer import QFormerPretraining
from vitvlm.tasks.reconstruct import Reconstruct

TASKS = Registry("task")
TASKS.register("blip")(Blip)
TASKS.register("classify")(Classify)
TASKS.register("coca")(CoCa)
TASKS.register("contrast")(Contrast)
TASKS.register("next_token")(NextToken)
TASKS.register("qformer")(QFormerPretraining)
TASKS.register("reconstruct")(Reconstruct)

__all__ = [
    "TASKS",
    "Batch",
    "Blip",
    "Classify",
    "CoCa",
    "Contrast",
    "Encode",
    "NextToken",
    "PredictFn",
    "QFormerPretraining",
    "Reconstruct",
    "Task",
    "Variables",
    "task_for",
]


@functools.singledispatch
def task_for(model: nn.Module) -> Task:
    """Returns the task that says what a model alone can predict, such as one of published weights.

    A kind of models registers its own: `@task_for.register(MAE)`. Any other is a classifier, or an encoder if it has no
    head.
    """
    return Classify(model) if model.num_classes else Encode(model)


@task_for.register(MAE)
def _(model: MAE) -> Task:
    return Reconstruct(model)


@task_for.register(TwoTowers)
def _(model: TwoTowers) -> Task:
    return Contrast(model, loss_kind="softmax" if model.bias_init is None else "sigmoid")


@task_for.register(Blip2QFormer)
def _(model: Blip2QFormer) -> Task:
    return QFormerPretraining(model)


@task_for.register(Decoder)
@task_for.register(T5)
@task_for.register(VLM)
def _(model: Decoder | T5 | VLM) -> Task:
    return NextToken(model)


@task_for.register(BlipBase)
def _(model: BlipBase) -> Task:
    if isinstance(model, BlipVQA):
        return NextToken(model)
    return Encode(model) if model.has_text_tower and model.scale_init is None else Blip(model)
