"""Setup of a job's data and of its model with a task, each from its own sections of a config.

Nothing here compiles or trains; `jobs.training.setup` adds the training.
"""
