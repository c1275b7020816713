"""What every script does at its start and end: flags, many processes, one-line errors."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError
from vitvlm.jobs import allocator
from vitvlm.training.checkpoints import CheckpointError
from vitvlm.training.interrupts import Interrupted
from vitvlm.training.loop import NotFiniteError
from vitvlm.training.workdir import WorkdirError

EXPECTED = (ConfigError, DataError, CheckpointError, WorkdirError, NotFiniteError)
"""Errors whose message says all that the user needs; others keep their traceback."""


def define_config(required: bool = True) -> flags.FlagHolder:
    """The `--config` flag; fields are overridden as `--config.model.patch_size=8`.

    Fields that the file leaves at their defaults can be set too; what nothing knows is an error of `jobs.setup`.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        help_string="Config file, with an argument after a colon.",
        lock_config=False,
        accept_new_attributes=True,
    )
    if required:
        flags.mark_flag_as_required("config")
    return holder


def run(main: Callable[[], None]) -> None:
    """Parses flags, joins the other processes if there are any, and runs `main`.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` make a job of many processes; on a TPU pod or
    under Slurm, `VITVLM_DISTRIBUTED=1` lets JAX find them. Exits with status 2 after a mistake of the user's.
    """

    def with_processes(argv: Sequence[str]) -> None:
        if extra := argv[1:]:
            raise ConfigError(f"{' '.join(extra)}: not a flag; write --config.field=value")
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            jax.distributed.initialize(
                num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
            )
        elif os.environ.get("VITVLM_DISTRIBUTED") == "1":
            jax.distributed.initialize()
        main()

    def one_line_errors(argv: Sequence[str]) -> None:
        try:
            with_processes(argv)
        except EXPECTED as error:
            sys.exit(_fail(error))
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            raise

    logging.set_verbosity(logging.WARNING)
    allocator.keep_large_buffers()
    app.run(one_line_errors, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    """absl's parser; an unknown flag or config field is one line that names the nearest."""
    try:
        arguments = flags.FLAGS(list(argv))
        if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
            flags.FLAGS["config"].value.keys()  # a file that failed to load only raises when it is looked at
        return arguments
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        sys.exit(_fail(f"--{error.flagname}: no such flag or config field{hint}"))
    except KeyError as error:
        sys.exit(_fail(f"--config: no section {error} in the config file to set a field of"))
    except (flags.Error, AttributeError, TypeError, ValueError, OSError) as error:
        # What a config file raises comes wrapped in a traceback's text, whose last line is the message.
        sys.exit(_fail(str(error).strip().splitlines()[-1].strip()))


def _fail(error: object) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
