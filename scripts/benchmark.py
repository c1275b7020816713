"""Times models against their PyTorch peers on this machine: a table, JSON and Markdown in the workdir.

    python scripts/benchmark.py --models=vit_s16,mae_b16 --workdir=workdirs/benchmark

Nothing else should run meanwhile. The peers need PyTorch and transformers: pip install "vitvlm[test]".
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import step_time

MODELS = flags.DEFINE_list("models", ["vit_s16", "mae_b16"], "Models: vit or mae, then size and patch side.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for benchmark.json and benchmark.md.", required=True)
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Image side in pixels.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per step.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 10, "Alternating rounds that are timed.", lower_bound=1)
PEERS = flags.DEFINE_bool("peers", True, "Whether to time the PyTorch peers too.")
SCAN = flags.DEFINE_bool("scan", False, "Whether our layers are scanned (compiles faster, runs slower) or looped.")
MICRO_BATCHES = flags.DEFINE_integer("micro_batches", 1, "Parts of our batch, run side by side.", lower_bound=1)
KEEP_AWAKE = flags.DEFINE_bool("keep_awake", False, "Whether loops of idle priority keep the cores from sleeping.")


def main() -> None:
    cases = [step_time.parse_case(name, IMAGE_SIZE.value, BATCH_SIZE.value) for name in MODELS.value]
    report = step_time.run(
        cases,
        rounds=ROUNDS.value,
        peer=PEERS.value,
        scan=SCAN.value,
        workdir=WORKDIR.value,
        micro_batches=MICRO_BATCHES.value,
        keep_awake=KEEP_AWAKE.value,
    )
    Console().print(step_time.table(report))


if __name__ == "__main__":
    launch.run(main)
