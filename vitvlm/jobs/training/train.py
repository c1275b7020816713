"""Trains a job from its config in a workdir; called again on the same workdir, it resumes."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vitvlm.core import classes, flops
from vitvlm.core.config import ConfigError, suggest
from vitvlm.core.paths import count_values
from vitvlm.data.batches import TRAINING, TrainBatches, changed
from vitvlm.data.identity import Identity
from vitvlm.evaluation import words
from vitvlm.jobs import data_files, fields
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.evaluation.evaluate import metrics_before, results_folder
from vitvlm.jobs.evaluation.prediction import Predictor
from vitvlm.jobs.setup import class_weights
from vitvlm.jobs.training import again, batch_picture, feature_cache, init_from, report
from vitvlm.jobs.training.setup import Setup, TrainingSetup, setup
from vitvlm.training import adapters, lock, loop, peak_flops, resume, sharding, workdir, writers
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
    return run(prepare(config, folder), folder, force, accept_changed_data)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A job that is checked in all that can be checked before its first step.

    Attributes:
      job: its config and parts; evals: its evaluations; best: which checkpoint is the best, if one is asked for.
      save_every: steps between checkpoints.
      cache: where the features of a frozen image encoder are kept, if they are.
    """

    job: Setup
    evals: tuple[evaluations.Evaluation, ...]
    best: Best | None
    save_every: int
    cache: fields.FeatureCache | None = None


def prepare(config: ConfigDict | Mapping[str, Any], folder: epath.PathLike) -> Prepared:
    """Sets up a job that begins in a workdir or goes on there. Raises ConfigError or DataError as `train`."""
    job = setup(again.going_on(config, folder))
    evals = evaluations.build(job.model, job.data, job.evals)
    for each in evals:
        _every(job.training, each)
    save_every = job.training.clock.steps(job.training.checkpoint.every, "config.checkpoint.every")
    return Prepared(job, evals, best_checkpoint(job, evals), save_every, feature_cache.check(job))


def run(
    prepared: Prepared,
    folder: epath.PathLike,
    force: bool = False,
    accept_changed_data: bool = False,
    may_change: tuple[str, ...] = (),
) -> dict[str, float]:
    """Trains a job that is prepared; see `train`. `may_change` are fields that may differ from before besides."""
    job, evals, best, save_every = prepared.job, prepared.evals, prepared.best, prepared.save_every
    training = job.training
    free = (*again.changeable(accept_changed_data, folder), *may_change)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(lock.hold(folder, force))
        folder = workdir.check(folder, job.config, free)
        before = workdir.began(folder) or job.config
        interrupts = stack.enter_context(Interrupts())
        checkpoints = stack.enter_context(_checkpoints(job, folder, best))
        writer = stack.enter_context(contextlib.closing(_writer(job, folder, held)))
        data = {TRAINING: Identity.of(job.data.source)} | {
            f"config.evals.{each.name}": Identity.of(each.source) for each in evals
        }
        known = {"data": data, "accept_changes": accept_changed_data, "lists": epath.Path(folder)}
        batches = stack.enter_context(job.data.batches(**known))
        batches.other_settings = again.just_continued(folder)
        again.check_length(training, checkpoints, folder)
        start = resume.restore_or_init(
            checkpoints, training.target, functools.partial(first_state, training), batches, writer
        )
        accounts = {"train": job.data.source.files} | {each.name: each.source.files for each in evals}

        def claim() -> None:
            workdir.claim(folder, job.config, free)
            if jax.process_index() == 0:
                data_files.save(folder, accounts)

        if start.restored is not None:
            claim()
        progress = stack.enter_context(_progress(training))
        progress.note(describe(job, start))
        for line in data_files.lines(accounts):
            progress.note(line)
        batches.say = progress.note
        if start.restored is not None:
            again.tell(progress, writer, start.restored, before, training, job.config)
        if batches.changes:
            progress.note(f"going on from checkpoint {start.restored} although {changed(batches.changes)}")
            writer.write(start.restored, {"data/changed": changed(batches.changes)})
        if held is not None:
            for identity in data.values():
                identity.save(epath.Path(folder))
        if batches.balance:
            progress.note(f"config.data.{batches.balance}")
        place = functools.partial(sharding.put_batch, mesh=job.model.mesh)
        flops_of_step = step_flops(training)
        if prepared.cache is not None and int(start.state.step) < training.clock.total_steps:
            kept = feature_cache.begin(job, prepared.cache, start.state, progress.note, interrupts)
            flops_of_step -= feature_cache.spared_flops(job) * training.section.batch_size
            if own := kept.without_images(job):
                if held is not None and start.restored is None:
                    with job.data.batches() as whole:  # those to come have no images to look at
                        batch_picture.once(folder, job.data.train.ops, *_labels_and_note(job))(next(whole))
                batches = stack.enter_context(_following(job.data.batches(**own, **known), batches))
            place = _in_turn(kept.exchanged, place)
        if held is not None:
            place = _in_turn(batch_picture.once(folder, job.data.train.ops, *_labels_and_note(job)), place)
            stack.callback(report.draw, job, folder)  # also of a training that is interrupted
        if start.restored != training.clock.total_steps:
            progress.note(f"compiling the first step, from which on a line follows every {training.log.every} steps")
        loop.fit(
            compiled_step(training),
            start,
            batches,
            total_steps=training.clock.total_steps,
            place=place,
            writer=writer,
            progress=progress,
            speed=Speed(job.data.batch_size, flops_of_step, training.log.peak_flops or peak_flops.peak()),
            interrupts=interrupts,
            evaluations=_evaluations(job, evals, folder, progress.note),
            checkpoints=checkpoints,
            save_every=save_every,
            log_every=training.log.every,
            begun=claim,
        )
        final = dict(checkpoints.metrics(training.clock.total_steps))
        for line in report.unread(batches):
            progress.note(line)
    if jax.process_index() == 0:
        data_files.save(folder, accounts, batches.bad.names)
        for line in report.ending(job, folder, final, start.restored == training.clock.total_steps):
            progress.note(line)
    return final


def _following(batches: TrainBatches, before: TrainBatches) -> TrainBatches:
    """The batches, at the place of others of the same rows, which they replace."""
    batches.set_state(before.get_state())
    batches.say = before.say
    before.close()
    return batches


def _in_turn(first: Callable[[Any], Any], then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda batch: then(first(batch))


def first_state(training: TrainingSetup) -> TrainState:
    """The state before the first step, made where it lives; its parameters are `init_from`'s if that is set."""
    state = jax.jit(training.init_state, out_shardings=training.state_shardings)(training.section.seed)
    state = init_from.apply(training.model, training.section.init_from, state, donate=True)
    begin = jax.jit(adapters.begun, out_shardings=training.state_shardings)
    return begin(state) if training.model.adapters else state


def compiled_step(training: TrainingSetup) -> Any:
    """The training's step `(state, batch) -> (state, metrics)`, jitted over its mesh."""
    tx, schedule = training.optimizer()
    several = jax.process_count() > 1
    step = make_train_step(
        _gradients(training), tx, schedule=schedule, ema_decay=training.section.ema_decay, pass_over_empty=several
    )
    model = training.model
    return jit_train_step(step, training.state_shardings, sharding.batch_sharding(model.mesh), model.task.constants)


def _gradients(training: TrainingSetup) -> Gradients:
    """Chooses how gradients are computed: by GradCache for micro-batches of a task that compares a batch's examples."""
    task, mesh, section = training.model.task, training.model.mesh, training.section
    pairwise = task.pairwise
    if pairwise and section.accumulate > 1:
        if section.unroll:
            raise ConfigError("config.unroll: a loss over all pairs of a batch takes its micro-batches in turn")
        encode = sharding.keep_examples_split(pairwise.encode, mesh)
        return cached_gradients(encode, pairwise.compare, accumulate=section.accumulate)
    return make_gradients(
        [sharding.keep_examples_split(loss, mesh) for loss in task.losses],
        accumulate=section.accumulate,
        unroll=section.unroll,
        whole_batch=task.whole_batch,
    )


def step_flops(training: TrainingSetup) -> float:
    """Analytic FLOPs of one training step over all devices, forward and backward; rematerialisation does not count.

    A teacher's forward pass is counted as if it had a backward pass too.
    """
    return float(training.model.forward_flops * (1 + backward_share(training)) * training.section.batch_size)


def backward_share(training: TrainingSetup) -> float:
    """FLOPs of the backward pass relative to the forward pass.

    Counted on the gradient's own program, rematerialisation and all, where frozen parameters spare a part of it.
    """
    model, state = training.model, training.state_shapes
    if not state.frozen:
        return BACKWARD_SHARE
    gradients = make_gradients(model.task.on_one_device().losses)
    collections = {**state.collections, **model.task.constants}
    key = jax.eval_shape(lambda: jax.random.key(0))
    both = flops.count(
        lambda params, collections, rng, frozen: gradients(params, collections, model.example_batch, rng, frozen)[0],
        state.params,
        collections,
        key,
        state.frozen,
    )
    return both / model.forward_flops - 1


def describe(job: Setup, start: resume.Start) -> str:
    """One line: what trains, on what, from where."""
    model, training, source = job.model, job.training, job.data.source
    parameters = model.parameter_count
    learning = count_values(training.state_shapes.params)
    trains = "" if learning == parameters else f" of which {learning:,} train"
    mesh = " x ".join(f"{name} {size}" for name, size in model.mesh.shape.items())
    weights, names = model.task.class_weights, model.head.names if model.head else ()
    alike = "; ".join(" and ".join(map(repr, group)) for group in classes.alike(names)[:5])
    doubt = f"; classes that may be one: {alike} (make them one by config.data.class_names)" if alike else ""
    weighted = f"; {class_weights.describe(weights, names)}" if weights else ""
    steps = training.clock.total_steps
    began = init_from.describe(model, training.section.init_from)
    where = began if start.restored is None else f"going on from checkpoint {start.restored}"
    if start.restored == steps:
        where = f"at its end, checkpoint {steps}: no step is left, and only evaluations that are missing are run"
    return (
        f"{job.config['task']['name']} with {model.section['name']}, {parameters:,} parameters{trains}, on "
        f"{source.name} ({source}): {steps} steps of {job.data.batch_size}, "
        f"{model.forward_flops / 1e9:.3g} GFLOPs per image forward; {jax.device_count()} {jax.default_backend()} "
        f"device{'s' * (jax.device_count() > 1)} ({mesh}){weighted}{doubt}; {where}"
    )


def _labels_and_note(job: Setup) -> tuple[Sequence[str], str]:
    """The classes of the labels in a batch, and what the picture of a batch says of operations and the step."""
    names = job.model.head.names if job.model.head else job.data.source.label_names
    task = job.config["task"]
    mixed = " and ".join(name for name in ("mixup", "cutmix") if task.get(name))
    notes = [f"Operations: {job.data.train.ops}"]
    if mixed:
        notes.append(f"The training step mixes these images by {mixed}, which is not shown.")
    return names, "\n".join(notes)


def _every(training: TrainingSetup, each: evaluations.Evaluation) -> int:
    return training.clock.steps(each.when.every or 0, f"config.evals.{each.name}.every")


def best_checkpoint(job: Setup, evals: Sequence[evaluations.Evaluation]) -> Best | None:
    """Returns the rule for the best checkpoint. Raises ConfigError for a metric that none gives."""
    metric = job.training.checkpoint.best
    if not metric:
        return None
    name, _, figure = metric.rpartition("/")
    if name not in job.evals:
        raise ConfigError(
            f"config.checkpoint.best: {metric!r} is not a metric of an evaluation such as test/top1; "
            f"of evaluations, {suggest(name, job.evals)}"
        )
    known = next((each.evaluator.metrics for each in evals if each.name == name), None)
    if known is None:
        raise ConfigError(f"config.checkpoint.best: {metric!r}: {name} is left out, as its data have no classes")
    if figure.removesuffix("_low").removesuffix("_high") not in known:
        raise ConfigError(
            f"config.checkpoint.best: {metric!r} is not a metric of that evaluation, a {job.evals[name]['type']}; "
            f"which gives {', '.join(f'{name}/{each}' for each in known)}"
        )
    return Best(metric, job.training.checkpoint.best_mode)


def _checkpoints(job: Setup, folder: epath.Path, best: Best | None) -> Checkpoints:
    return Checkpoints(
        folder / workdir.CHECKPOINTS, config=job.config, keep_last=job.training.checkpoint.keep_last, best=best
    )


def _writer(job: Setup, folder: epath.Path, held: lock.Lock | None) -> writers.Writer:
    """metrics.jsonl, and what `log` asks for; only the first process writes."""
    if held is None:
        return writers.Writers(())
    chosen: list[writers.Writer] = [writers.JsonlWriter(folder / "metrics.jsonl", check=held.check)]
    log = job.training.log
    if log.tensorboard:
        chosen.append(writers.TensorBoardWriter(folder / "tensorboard"))
    if log.wandb:
        chosen.append(writers.WandbWriter(folder / "wandb", job.config, project=log.wandb))
    return writers.Writers(chosen)


def _progress(training: TrainingSetup) -> Progress:
    source, size = training.examples, training.section.batch_size
    return Progress(
        training.clock.total_steps,
        lines_every=training.log.every,
        steps_per_epoch=None if source.streams else len(source) / size,
        describe=words.sentence,
        quiet=jax.process_index() > 0,
    )


def _evaluations(
    job: Setup, evals: tuple[evaluations.Evaluation, ...], folder: epath.Path, say: Callable[[str], None]
) -> tuple[loop.Scheduled, ...]:
    predict = Predictor(job.model.task, job.model.mesh)
    ema = job.training.section.ema_decay is not None

    def run(each: evaluations.Evaluation, state: TrainState, step: int) -> Mapping[str, float]:
        metrics = each.run(predict, state.variables(ema=ema), results_folder(folder, step) / each.name).metrics
        wrong = each.evaluator.warning(metrics, metrics_before(folder, each.name, step)) if step else ""
        if wrong:
            say(f"step {step}: warning: {each.name}: {wrong}")
        return metrics

    return tuple(
        loop.Scheduled(
            each.name,
            functools.partial(run, each),
            every=_every(job.training, each),
            at_start=each.when.at_start,
            at_end=each.when.at_end,
        )
        for each in evals
    )
