"""Memory of fine-tuning a model as a whole, in part, by LoRA or by QLoRA, as compiled: nothing is run.

    python scripts/adapting_memory.py --workdir=workdirs/adapting_memory
    python scripts/adapting_memory.py --recipe=configs/lm_emoji.py --ways=full,lora,qlora --workdir=workdirs/adapting
    JAX_NUM_CPU_DEVICES=8 python scripts/adapting_memory.py --recipe=configs/flamingo.py --argument=size=9B \
        --ways=full,cross --devices=8 --workdir=workdirs/flamingo_memory

A row for each way to train, which is the config file's argument `adapt`. Neither data nor weights are opened. With
several devices the config's own mesh and sharding are compiled for; the state and the step are those of each device.
"""

from absl import flags
from rich.console import Console

from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.jobs import configs, launch
from vitvlm.jobs.benchmarks import adapting
from vitvlm.jobs.benchmarks.loss_memory import devices

RECIPE = flags.DEFINE_string("recipe", "configs/lm_emoji.py", "Config file that takes the argument adapt.")
WAYS = flags.DEFINE_list("ways", ["full", "lora", "qlora"], "Values of that argument.")
ARGUMENT = flags.DEFINE_string("argument", "", "Its other arguments, such as debug or rank=8.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU topology; this machine's first device by default.")
DEVICES = flags.DEFINE_integer("devices", 1, "Number of devices, the first of them.", lower_bound=1)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for adapting.json and .md.", required=True)


def main() -> None:
    rest = f",{ARGUMENT.value}" if ARGUMENT.value else ""
    named = {way: config_lib.plain(configs.load(f"{RECIPE.value}:adapt={way}{rest}", "--recipe")) for way in WAYS.value}
    there = devices(TOPOLOGY.value)
    if len(there) < DEVICES.value:
        raise ConfigError(f"--devices={DEVICES.value}: there are {len(there)}; simulate more by JAX_NUM_CPU_DEVICES")
    measured = adapting.run(named, there[: DEVICES.value], WORKDIR.value)
    Console(width=160).print(adapting.table(measured))


if __name__ == "__main__":
    launch.run(main)
