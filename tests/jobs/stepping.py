"""One step of a toy job without anything random in it, for tests that compare steps."""

from tests.jobs import golden
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.training import sharding


def towers(path, **fields):
    """The debug config of two towers, without drop path and dropout, with these fields changed."""
    config = golden.load(path, "debug")
    config.model.image.drop_path = config.model.text.dropout = 0.0
    for name, value in fields.items():
        config[name] = value
    return config


def stepped(config):
    """Returns (state, metrics) after the first step."""
    job = setup(config)
    state = train.first_state(job.training)
    with job.data.batches() as batches:
        return train.compiled_step(job.training)(state, sharding.put_batch(next(batches), job.model.mesh))
