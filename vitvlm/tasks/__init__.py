"""Tasks by name: a model, an objective, and what can be predicted. See base.py for the contract."""

from vitvlm.core.registry import Registry
from vitvlm.tasks.base import Batch, PredictFn, Task, Variables
from vitvlm.tasks.classify import Classify
from vitvlm.tasks.coca import CoCa
from vitvlm.tasks.contrast import Contrast
from vitvlm.tasks.encode import Encode
from vitvlm.tasks.reconstruct import Reconstruct

TASKS = Registry("task")
TASKS.register("classify")(Classify)
TASKS.register("coca")(CoCa)
TASKS.register("contrast")(Contrast)
TASKS.register("reconstruct")(Reconstruct)

__all__ = ["TASKS", "Batch", "Classify", "CoCa", "Contrast", "Encode", "PredictFn", "Reconstruct", "Task", "Variables"]
