"""Trains a job from its config in a workdir; called again on the same workdir, it resumes."""

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vitvlm.core import classes, flops
from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.batches import TRAINING, TrainBatches, changed, train_batches
from vitvlm.data.identity import Identity
from vitvlm.jobs import data_files
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.evaluation.evaluate import results_folder
from vitvlm.jobs.evaluation.prediction import Predictor
from vitvlm.jobs.training import class_weights, curves, init_from
from vitvlm.jobs.training.setup import Setup, restore_target, setup
from vitvlm.training import lock, loop, peak_flops, records, resume, sharding, workdir, writers
from vitvlm.training.best import Best
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.grad_cache import cached_gradients
from vitvlm.training.gradients import Gradients, make_gradients
from vitvlm.training.interrupts import Interrupts
from vitvlm.training.progress import Progress
from vitvlm.training.speed import Speed
from vitvlm.training.state import TrainState
from vitvlm.training.step import jit_train_step, make_train_step

# The backward pass does each product of the forward pass twice, once per operand: the convention of MFU figures.
BACKWARD_SHARE = 2


def train(
    config: ConfigDict | Mapping[str, Any],
    folder: epath.PathLike,
    force: bool = False,
    accept_changed_data: bool = False,
) -> dict[str, float]:
    """Runs a job to its end and returns the metrics of the evaluations at its last step, "test/top1" and so on.

    Args:
      config: see `jobs.fields.Job`.
      folder: the workdir: config.json, metrics.jsonl, checkpoints/ and evaluations/.
      force: break the lock of another job that holds the workdir.
      accept_changed_data: go on although the data, of training or of evaluations, are not those of the checkpoint; then
        `data.class_names` may change too, so that a renamed class keeps its label.

    Raises ConfigError, DataError, WorkdirError or CheckpointError with one line that says what to do; NotFiniteError;
    Interrupted after SIGTERM or SIGINT, with everything saved.
    """
    job = setup(going_on(config, folder))
    evals = evaluations.build(job, job.job.evals)
    best = best_checkpoint(job, evals)
    changeable = workdir.CHANGEABLE + workdir.WITH_CHANGED_DATA * accept_changed_data
    save_every = job.clock.steps(job.checkpoint.every, "config.checkpoint.every")
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(lock.hold(folder, force))
        folder = workdir.check(folder, job.config, changeable)
        interrupts = stack.enter_context(Interrupts())
        checkpoints = stack.enter_context(_checkpoints(job, folder, best))
        writer = stack.enter_context(contextlib.closing(_writer(job, folder, held)))
        data = {TRAINING: Identity.of(job.source)} | {
            f"config.evals.{each.name}": Identity.of(each.source) for each in evals
        }
        batches = stack.enter_context(
            open_batches(job, data=data, accept_changes=accept_changed_data, lists=epath.Path(folder))
        )
        start = resume.restore_or_init(
            checkpoints, restore_target(job), functools.partial(first_state, job), batches, writer
        )
        accounts = {"train": job.source.files} | {each.name: each.source.files for each in evals}

        def claim() -> None:
            workdir.claim(folder, job.config, changeable)
            if jax.process_index() == 0:
                data_files.save(folder, accounts)

        if start.restored is not None:
            claim()
        progress = stack.enter_context(_progress(job))
        progress.note(describe(job, start))
        for line in data_files.lines(accounts):
            progress.note(line)
        batches.say = progress.note
        if batches.changes:
            progress.note(f"going on from checkpoint {start.restored} although {changed(batches.changes)}")
            writer.write(start.restored, {"data/changed": changed(batches.changes)})
        if held is not None:
            for identity in data.values():
                identity.save(epath.Path(folder))
        if batches.balance:
            progress.note(f"config.data.{batches.balance}")
        loop.fit(
            compiled_step(job),
            start,
            batches,
            total_steps=job.clock.total_steps,
            place=functools.partial(sharding.put_batch, mesh=job.mesh),
            writer=writer,
            progress=progress,
            speed=Speed(job.job.batch_size, step_flops(job), job.log.peak_flops or peak_flops.peak()),
            interrupts=interrupts,
            evaluations=_evaluations(job, evals, folder),
            checkpoints=checkpoints,
            save_every=save_every,
            log_every=job.log.every,
            begun=claim,
        )
        final = checkpoints.metrics(job.clock.total_steps)
        if batches.bad.count:
            skipped = f"; {batches.skipped} batches without a readable one were skipped" if batches.skipped else ""
            progress.note(f"{batches.bad.count} of {batches.bad.seen} images could not be read: {batches.bad}{skipped}")
    if jax.process_index() == 0:
        data_files.save(folder, accounts, batches.bad.names)
        _draw_curves(folder)
    return dict(final)


def going_on(config: ConfigDict | Mapping[str, Any], folder: epath.PathLike) -> dict[str, Any]:
    """The config with the classes under which the same training began in a workdir, so that names keep their labels.

    Classes that the config gives itself stay, and so does a config that is another training's.
    """
    plain = config_lib.plain(config)
    before = workdir.began(folder) or {}
    free = (*workdir.CHANGEABLE, "classes", "model/num_classes", *workdir.WITH_CHANGED_DATA)
    if plain.get("classes") is None and before.get("classes") and not workdir.differing(before, plain, free):
        plain["classes"] = before["classes"]
    return plain


def _draw_curves(folder: epath.Path) -> None:
    """A picture is no reason to fail a training that has come to its end."""
    try:
        curves.save(folder)
    except Exception as error:
        logging.getLogger(__name__).warning("%s: curves.png could not be drawn: %s", folder, records.line(error))


def first_state(job: Setup) -> TrainState:
    """The state before the first step, made where it lives; its parameters are `init_from`'s if that is set."""
    state = jax.jit(job.init_state, out_shardings=job.state_shardings)(job.job.seed)
    return init_from.apply(job, state, donate=True)


def compiled_step(job: Setup) -> Any:
    """The job's step `(state, batch) -> (state, metrics)`, jitted over its mesh."""
    tx, schedule = job.optimizer(job.variable_shapes["params"])
    several = jax.process_count() > 1
    step = make_train_step(_gradients(job), tx, schedule=schedule, ema_decay=job.job.ema_decay, pass_over_empty=several)
    return jit_train_step(step, job.state_shardings, sharding.batch_sharding(job.mesh), job.task.constants)


def _gradients(job: Setup) -> Gradients:
    """Chooses how gradients are computed: by GradCache for micro-batches of a task that compares a batch's examples."""
    pairwise = job.task.pairwise
    if pairwise and job.job.accumulate > 1:
        if job.job.unroll:
            raise ConfigError("config.unroll: a loss over all pairs of a batch takes its micro-batches in turn")
        encode = sharding.keep_examples_split(pairwise.encode, job.mesh)
        return cached_gradients(encode, pairwise.compare, accumulate=job.job.accumulate)
    return make_gradients(
        [sharding.keep_examples_split(loss, job.mesh) for loss in job.task.losses],
        accumulate=job.job.accumulate,
        unroll=job.job.unroll,
        whole_batch=job.task.whole_batch,
    )


def step_flops(job: Setup) -> float:
    """Analytic FLOPs of one training step over all devices, forward and backward; rematerialisation does not count.

    A teacher's forward pass is counted as if it had a backward pass too.
    """
    return float(job.forward_flops * (1 + backward_share(job)) * job.job.batch_size)


def backward_share(job: Setup) -> float:
    """FLOPs of the backward pass relative to the forward pass.

    Counted on the gradient's own program, rematerialisation and all, where frozen parameters spare a part of it.
    """
    state = job.state_shapes
    if not state.frozen:
        return BACKWARD_SHARE
    gradients = make_gradients(job.task.losses)
    collections = {**state.collections, **job.task.constants}
    key = jax.eval_shape(lambda: jax.random.key(0))
    both = flops.count(
        lambda params, collections, rng, frozen: gradients(params, collections, job.example_batch, rng, frozen)[0],
        state.params,
        collections,
        key,
        state.frozen,
    )
    return both / job.forward_flops - 1


def describe(job: Setup, start: resume.Start) -> str:
    """One line: what trains, on what, from where."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(job.variable_shapes["params"]))
    training = sum(leaf.size for leaf in jax.tree.leaves(job.state_shapes.params))
    trains = "" if training == parameters else f" of which {training:,} train"
    mesh = " x ".join(f"{name} {size}" for name, size in job.mesh.shape.items())
    weights = job.task.class_weights
    alike = "; ".join(" and ".join(map(repr, group)) for group in classes.alike(job.job.classes or ())[:5])
    doubt = f"; classes that may be one: {alike} (make them one by config.data.class_names)" if alike else ""
    weighted = f"; {class_weights.describe(weights, job.job.classes)}" if weights else ""
    where = init_from.describe(job) if start.restored is None else f"going on from checkpoint {start.restored}"
    if start.restored == job.clock.total_steps:
        where = (
            f"at its end, checkpoint {start.restored}: no step is left, and only evaluations that are missing are run"
        )
    return (
        f"{job.job.task['name']} with {job.job.model['name']}, {parameters:,} parameters{trains}, on {job.source.name} "
        f"({job.source}): {job.clock.total_steps} steps of {job.job.batch_size}, "
        f"{job.forward_flops / 1e9:.3g} GFLOPs per image forward; {jax.device_count()} {jax.default_backend()} "
        f"device{'s' * (jax.device_count() > 1)} ({mesh}){weighted}{doubt}; {where}"
    )


def best_checkpoint(job: Setup, evals: Sequence[evaluations.Evaluation]) -> Best | None:
    """Returns the rule for the best checkpoint. Raises ConfigError for a metric that none gives."""
    metric = job.checkpoint.best
    if not metric:
        return None
    name, _, figure = metric.rpartition("/")
    if name not in job.job.evals:
        raise ConfigError(
            f"config.checkpoint.best: {metric!r} is not a metric of an evaluation such as test/top1; "
            f"of evaluations, {suggest(name, job.job.evals)}"
        )
    known = next(each.evaluator.metrics for each in evals if each.name == name)
    if figure.removesuffix("_low").removesuffix("_high") not in known:
        raise ConfigError(
            f"config.checkpoint.best: {metric!r} is not a metric of that evaluation, a {job.job.evals[name]['type']}; "
            f"which gives {', '.join(f'{name}/{each}' for each in known)}"
        )
    return Best(metric, job.checkpoint.best_mode)


def _checkpoints(job: Setup, folder: epath.Path, best: Best | None) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", config=job.config, keep_last=job.checkpoint.keep_last, best=best)


def _writer(job: Setup, folder: epath.Path, held: lock.Lock | None) -> writers.Writer:
    """metrics.jsonl, and what `log` asks for; only the first process writes."""
    if held is None:
        return writers.Writers(())
    chosen: list[writers.Writer] = [writers.JsonlWriter(folder / "metrics.jsonl", check=held.check)]
    if job.log.tensorboard:
        chosen.append(writers.TensorBoardWriter(folder / "tensorboard"))
    if job.log.wandb:
        chosen.append(writers.WandbWriter(folder / "wandb", job.config, project=job.log.wandb))
    return writers.Writers(chosen)


def _progress(job: Setup) -> Progress:
    return Progress(job.clock.total_steps, lines_every=job.log.every, quiet=jax.process_index() > 0)


def open_batches(job: Setup, **data: Any) -> TrainBatches:
    """The job's training batches; `data` are those arguments of `train_batches` by which changed data are found."""
    return train_batches(
        job.source,
        job.train_split.ops,
        job.job.batch_size,
        job.job.seed,
        workers=job.data.workers,
        max_unreadable_fraction=job.data.max_unreadable_fraction,
        shuffle_buffer=job.data.shuffle_buffer,
        balance=job.data.balance,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **data,
    )


def _evaluations(
    job: Setup, evals: tuple[evaluations.Evaluation, ...], folder: epath.Path
) -> tuple[loop.Scheduled, ...]:
    predict = Predictor(job.task, job.mesh)
    ema = job.job.ema_decay is not None

    def run(each: evaluations.Evaluation, state: TrainState, step: int) -> Mapping[str, float]:
        return each.run(predict, state.variables(ema=ema), results_folder(folder, step) / each.name).metrics

    return tuple(
        loop.Scheduled(
            each.name,
            functools.partial(run, each),
            every=job.clock.steps(each.when.every or 0, f"config.evals.{each.name}.every"),
            at_start=each.when.at_start,
            at_end=each.when.at_end,
        )
        for each in evals
    )
