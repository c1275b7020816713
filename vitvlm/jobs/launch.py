"""Start and end of every script: flags, many processes, one-line errors."""

import ast
import difflib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError
from vitvlm.jobs import allocator, simulated
from vitvlm.jobs.overrides import apply_overrides, take_overrides, written
from vitvlm.training.checkpoints import CheckpointError
from vitvlm.training.interrupts import Interrupted
from vitvlm.training.loop import NotFiniteError
from vitvlm.training.workdir import WorkdirError

EXPECTED = (ConfigError, DataError, CheckpointError, WorkdirError, NotFiniteError)
"""Errors whose message says all that the user needs; others keep their traceback."""


def define_config(required: bool = True, flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """The `--config` flag; `parse` sets the fields that are overridden as `--config.model.patch_size=8`."""
    holder = config_flags.DEFINE_config_file(
        "config",
        help_string="Config file, with an argument after a colon; --config.FIELD=VALUE sets any field of it.",
        lock_config=False,
        flag_values=flag_values,
        sys_argv=[],  # `parse` takes the overrides, since these flags can set neither absent sections nor None
    )
    if required:
        flags.mark_flag_as_required("config", flag_values)
    return holder


def define_workdir(text: str) -> flags.FlagHolder:
    """The `--workdir` flag, of a script that can do without when nothing is to be written; see `required`."""
    return flags.DEFINE_string("workdir", None, text)


def required(holder: flags.FlagHolder) -> Any:
    """The flag's value. Raises ConfigError without one."""
    if holder.value is None:
        raise ConfigError(f"--{holder.name}: missing; give a folder, as --{holder.name}=workdirs/mine")
    return holder.value


def define_print_config() -> flags.FlagHolder:
    """The `--print_config` flag: the fields of the config are printed, and nothing is run; see `parse`."""
    return flags.DEFINE_bool("print_config", False, "Print every field as --config.FIELD=VALUE, and run nothing.")


def define_fields() -> flags.FlagHolder:
    """The flag --fields, for `named_values`."""
    return flags.DEFINE_list("fields", [], "What the weights do not say, as name=value: image_size=224,heads=6.")


def announce(doing: str, config: flags.FlagHolder) -> None:
    """Says at once what a script begins to do, and with which config: the imports alone take some seconds."""
    if os.environ.get("JAX_PROCESS_ID", "0") == "0":
        file = config_flags.get_config_filename(flags.FLAGS[config.name])
        print(f"{file}: {doing}", file=sys.stderr, flush=True)


def named_values(texts: Sequence[str]) -> dict[str, Any]:
    """Parses `["heads=6", "subtree=student"]` as {"heads": 6, "subtree": "student"}.

    Raises ConfigError for a text that is not name=value.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--fields: {text!r} is not name=value")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def define_step() -> flags.FlagHolder:
    """The `--step` flag: a checkpoint by name; see `training.chosen`."""
    text = "Checkpoint: latest, best, or a step; with :ema or :raw behind it, the averaged parameters or the others."
    return flags.DEFINE_string("step", None, text)


def define_force(what: str) -> flags.FlagHolder:
    """The `--force` flag, which breaks the lock of another job."""
    return flags.DEFINE_bool("force", False, f"Break the lock of another {what} that holds the workdir.")


def define_accept_changed_data() -> flags.FlagHolder:
    """The `--accept_changed_data` flag: a checkpoint is gone on from with other data than it has seen."""
    text = "Go on from a checkpoint although the training data have changed since; the change is logged."
    return flags.DEFINE_bool("accept_changed_data", False, text)


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
    simulated.give_threads()
    app.run(one_line_errors, flags_parser=parse)


_ERROR = re.compile(r"[\w.]+(Error|Exception): ")  # of a traceback's last line
HELP = ("--help", "-help", "-h", "--helpfull", "-?")


def parse(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses flags as absl does, sets overridden fields of the config, and returns the arguments that are not flags.

    `--help` prints the script's flags and the fields of its config, `--print_config` the fields with their values; both
    end the program. A mistake is one line that names the nearest flag or field, and ends the program with status 2.
    """
    try:
        argv, overrides = take_overrides(flag_values.read_flags_from_files(list(argv), force_gnu=False))
        helped = any(argument in HELP for argument in argv)
        if helped:
            argv = [argument for argument in argv if argument not in HELP]
            for name in list(flag_values):
                flag_values[name].validators = []  # nothing is required of who asks for help
        arguments = flag_values(argv)
        config = flag_values["config"].value if "config" in flag_values else None
        if config is not None:
            config.keys()  # a file that failed to load only raises when it is looked at
            apply_overrides(config, overrides)
        elif overrides and "config" in flag_values:
            flag_values["config"].value = config = ConfigDict()
            apply_overrides(config, overrides)
        elif overrides:
            raise ConfigError(f"--config.{overrides[0][0]}: there is no config to set it in; give --config")
        if helped:
            _print(_help(flag_values, config))
        elif config is not None and "print_config" in flag_values and flag_values["print_config"].value:
            _print("".join(f"--config.{path}={value}\n" for path, value in written(config)))
        return arguments
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flag_values), n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        sys.exit(_fail(f"--{error.flagname}: no such flag or config field{hint}"))
    except (flags.Error, AttributeError, TypeError, ValueError, OSError) as error:
        # What a config file raises comes wrapped in a traceback's text, whose last line is the message.
        sys.exit(_fail(_ERROR.sub("", str(error).strip().splitlines()[-1].strip())))


def _print(text: str) -> None:
    """Prints what was asked for, and ends the program."""
    print(text, end="")
    sys.exit(0)


def _help(flag_values: flags.FlagValues, config: ConfigDict | None) -> str:
    """Describes the script, its flags, and the fields of its config: those of any, where none is given."""
    script = sys.modules["__main__"].__doc__ or ""
    lines = [script.strip(), "", "Flags:"]
    width = max(shutil.get_terminal_size((120, 24)).columns, 60)
    own = [flag for module, of in flag_values.flags_by_module_dict().items() if not _foreign(module) for flag in of]
    for flag in own:
        default = "" if flag.default in (None, []) else f" (default {flag.default_as_str})"
        text = f"--{flag.name}  {flag.help}{default}"
        lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    if "config" in flag_values:
        from vitvlm.jobs import reference  # imports every model, which only a reader of the help waits for

        lines += ["", reference.help_text(None if config is None else config_lib.plain(config), width).rstrip()]
    return "\n".join(lines) + "\n"


def _foreign(module: str) -> bool:
    """Tells whether flags of that module are a library's."""
    return module.split(".")[0] in ("absl", "jax", "etils", "tensorflow_datasets", "ml_collections", "tqdm")


def _fail(error: object) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
