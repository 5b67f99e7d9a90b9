"""Train students on cached teacher logits: ``train_group`` is the loop, ``compute_step`` is an update.

A group is one run or several that share everything but student and method: they train side by side on the same batches,
so that pictures are read and augmented once, and each ends with the bits that it would have had alone (on a CPU).
``train_run`` is the group of one.

The loop does not run a teacher, choose among epochs by the test split (it keeps the last epoch's weights, or, where the
job asks for them, those of the best epoch on the validation split), or move a job's state. A run that is killed
anywhere resumes from its last checkpoint and ends with bit-identical weights on a CPU, because nothing is drawn from a
generator with a history: order, views and dropout are functions of (seed, epoch, step).
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from workers.config.task import TrainingTask
from workers.events import Emit, Finished, Log, ShouldStop
from workers.methods.cache_statistics import CacheStatistic
from workers.objective.objective import objective_of
from workers.objective.results import Objective
from workers.objective.view import View
from workers.precision import float32_as
from workers.training.cuda_graphs.batch_graph import BatchGraph
from workers.training.domain import warn_of_domain
from workers.training.evaluation.evaluate import evaluate_with_logits
from workers.training.evaluation.final_evaluation import FinalEvaluation, final_evaluation
from workers.training.feed.batches import LoadedBatch, TrainingBatch
from workers.training.group import Ended, Group, share_time
from workers.training.not_finite import check_gradient, check_metrics
from workers.training.optimization.micro_batches import micro_batches
from workers.training.optimization.optimizer import learning_rate
from workers.training.result import leave
from workers.training.run import RunState
from workers.training.run_handle import RunHandle
from workers.training.setting import Setting, new_run_state, set_up

# A checkpoint that takes long is made so seldom that it costs a twentieth of the time at most.
_SAVING_SHARE = 0.05

# In the place of result.json where artifacts are left to another process.
TRAINED: Mapping[str, object] = MappingProxyType({"trained": True})


def train_run(task: TrainingTask, emit: Emit, should_stop: ShouldStop) -> dict[str, object]:
    """Train one run to its end, or from its last checkpoint to its end.

    Args:
        task: what to train, on which data, where to leave it.
        emit: takes events of steps (at most one in two seconds), epochs and the end.
        should_stop: asked before every batch.

    Returns:
        The content of result.json, or ``TRAINED`` where the task's stage is ``train``; of several processes of one
        student the first returns it, the others nothing.

    Raises:
        Stopped: ``should_stop`` returned true; the last checkpoint stays.
        NotFinite: the loss or its gradient is not a number.
        InvalidJob: the student cannot take these pictures, or the device is not there.
        PeerLost: another process of this student is gone.
        CheckpointLost: the stage is ``export``, and the run is not trained to its end.
        store.StoreError: the cache is missing, incomplete or damaged.
    """
    [(_, how)] = train_group([RunHandle(task, emit, should_stop)])
    if isinstance(how, Exception):
        raise how
    return how


def train_group(handles: Sequence[RunHandle]) -> Iterator[Ended]:
    """Train runs side by side on the same batches; each as ``train_run`` does.

    Yields:
        Each run's place and end, as soon as it has ended. A run that fails or is stopped leaves the others alone.

    Raises:
        What ``train_run`` raises, where it concerns them all: the device, the data, the caches.
    """
    with set_up(handles) as setting:
        feed, group = setting.feed, Group(handles, setting, compute_step)
        load = BatchGraph(feed).load if setting.no_graph is None else feed.load

        # ---- resume
        for place, handle in enumerate(handles):
            with group.on_behalf_of(place):
                group.add(new_run_state(place, handle, setting))
                if len(handles) > 1:
                    handle.emit(Log(message=f"one of {len(handles)} runs trained in one process on the same batches"))
        yield from group.take_ended()
        saved, saving_s = time.monotonic(), 0.0

        while group.run_states:
            # ---- leave; at once, if the run was resumed from its last checkpoint
            for run_state in [run_state for run_state in group.run_states if run_state.is_done]:
                with group.on_behalf_of(run_state.place):
                    if run_state.task.stage == "train":
                        group.end(run_state.place, dict(TRAINED))
                        continue
                    result = leave(run_state, setting) if setting.replicas.is_first else {}
                    run_state.emit(Finished(result=result))
                    group.end(run_state.place, result)
            yield from group.take_ended()
            if not group.run_states:
                break

            # ---- epoch; whoever was resumed from a later checkpoint waits until the others are there
            epoch = min(run_state.epoch for run_state in group.run_states)
            behind = [run_state for run_state in group.run_states if run_state.epoch == epoch]
            for run_state in behind:
                run_state.network.train()
            first_step = min(run_state.sums.steps for run_state in behind)
            counted = time.monotonic()
            with float32_as(setting.precision):
                # ---- batch
                waiting = partial(group.obey_while_waiting, behind)
                for step, loaded in feed.batches(epoch, first_step, load, waiting):
                    group.fork()
                    # Whoever waits is asked, too: a run that is to stop does not wait for the others.
                    for run_state in [*group.run_states]:
                        with group.turn_of(run_state, loaded) as graph:
                            group.obey_signal(run_state)
                            if run_state in behind and run_state.sums.steps == step:
                                # ---- forward, objective, backward, guard, update; or their replay on a GPU
                                prepare_step(run_state, step, feed.steps)
                                if graph is None:
                                    compute_step(run_state, loaded)
                                else:
                                    graph.step(step, loaded)
                                run_state.count_step(len(loaded.batch.rows))
                                # ---- report
                                group.report_and_check(run_state)
                    group.join()
                    counted = share_time(behind, since=counted)

                    # ---- checkpoint
                    if counted - saved > max(handles[0].task.checkpoint_s, saving_s / _SAVING_SHARE):
                        group.save(behind)
                        saved, saving_s = time.monotonic(), time.monotonic() - counted
                    yield from group.take_ended()
                    behind = group.still_there(behind)
                    if not behind:
                        break

            # Some may have ended while they waited for a batch.
            yield from group.take_ended()
            behind = group.still_there(behind)
            # The steps were launched; now they are waited for.
            readings = {run_state.place: run_state.sums.read() for run_state in behind}
            share_time(behind, since=counted)
            for run_state in behind:
                with group.on_behalf_of(run_state.place):
                    # ---- evaluate
                    started = time.monotonic()
                    group.check_finite(run_state, readings[run_state.place])
                    run_state.network.eval()
                    line: dict[str, float | None] = {
                        "epoch": epoch + 1,
                        "lr": learning_rate(run_state.training, (epoch + 1) * feed.steps - 1, feed.steps),
                        "images_per_s": run_state.sums.rows / run_state.sums.seconds,
                        **readings[run_state.place].means,
                        **run_state.evaluate(setting.evaluations, setting.preprocessing),
                        "seconds": run_state.sums.seconds + time.monotonic() - started,
                    }
                    check_metrics(line, run_state.method, epoch)

                    # ---- checkpoint
                    run_state.end_epoch(line, readings[run_state.place].temperatures)
                    warn_of_domain(run_state)
                    if run_state.is_done:
                        run_state.final = _final_evaluation(run_state, setting)
                    run_state.save()
                    run_state.report_epoch()
            yield from group.take_ended()


def prepare_step(run_state: RunState, step: int, steps: int) -> None:
    """Set learning rate and random draws of a step; both depend on where it is in the run and on nothing else."""
    lr = learning_rate(run_state.training, run_state.epoch * steps + step, steps)
    for group in run_state.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    run_state.seed(step)


def compute_step(run_state: RunState, loaded: LoadedBatch, *, check: bool = False) -> None:
    """Update a student once. Launched and not waited for, so that a CUDA graph can hold it.

    Args:
        loaded: of each view of the batch; a method of one view sees the first.
        check: look for what is not finite instead of the update, which waits for the device.

    Raises:
        NotFinite: if it is to be checked; its sample is a row of the batch.
    """
    method, training = run_state.method, run_state.training
    is_bfloat16 = run_state.precision == "bfloat16"
    autocast = torch.autocast(run_state.device.type, torch.bfloat16) if is_bfloat16 else contextlib.nullcontext()

    run_state.optimizer.zero_grad(set_to_none=True)
    done: list[tuple[Objective, Tensor, TrainingBatch]] = []
    # One, unless the gradient is accumulated.
    for part in micro_batches(loaded, training):
        batch = part.batch

        # ---- forward: logits [B, C] of each view; what is kept, and evaluated, is the float32 network
        logits = []
        # Not a comprehension: what one closes over outlives a failure.
        for x_bKHW in part.inputs[: method.views]:
            with autocast:
                logits_bC = run_state.network(x_bKHW)
            logits.append(run_state.replicas.whole(logits_bC, len(batch.labels), batch.local_slice))

        # ---- objective
        outcome = objective_of(
            method,
            [
                View(logits_BC, seen.teacher_logits, seen.teacher_statistics, seen.known, mixed=seen.mixed)
                for logits_BC, seen in zip(logits, batch.views, strict=False)
            ],
            batch.labels,
            epoch=run_state.epoch + 1,
            epochs=training.epochs,
            learned=run_state.learned,
            cache_statistics=_of_rows(run_state.cache_statistics, batch.device_rows),
            label_smoothing=training.label_smoothing,
            some_unlabelled=batch.some_unlabelled,
            check=check,
        )

        # ---- backward: of the mean over the whole batch
        share = len(batch.labels) / len(loaded.batch.labels)
        torch.autograd.backward(outcome.total if share == 1.0 else outcome.total * share)
        done.append((outcome, logits[0].detach(), batch))
    run_state.replicas.sum_gradients(run_state.weights)
    if check:
        check_gradient(run_state.parameters, done[-1][0].total, method)
        return

    # ---- guard: a loss or gradient that is not finite has the optimizer skip this update and all later ones
    checked = [p.grad for p in run_state.parameters if p.grad is not None]
    if training.max_gradient_norm is not None:
        norm = nn.utils.clip_grad_norm_(run_state.parameters, training.max_gradient_norm)
        # A norm that overflows would scale finite gradients to nothing.
        checked.append(norm)
    # The kernel of torch's gradient scaler, at a scale of 1: one launch, and one pass, for all gradients.
    checked += [watched for outcome, _, _ in done for watched in outcome.watched]
    torch._amp_foreach_non_finite_check_and_unscale_(checked, run_state.not_finite, run_state.one)

    # ---- update
    run_state.optimizer.step()
    if run_state.ema is not None:
        run_state.ema.update()
    for outcome, logits_BC, batch in done:
        run_state.sums.add(outcome, logits_BC, batch.labels, run_state.not_finite, mixed=batch.views[0].mixed)


def _of_rows(over_cache: Mapping[CacheStatistic, Tensor], rows_B: Tensor) -> dict[CacheStatistic, Tensor]:
    """Statistics over the cache, those of samples for these rows alone: on the device, without waiting."""
    return {
        each: values.index_select(0, rows_B) if each.is_per_sample else values for each, values in over_cache.items()
    }


def _final_evaluation(run_state: RunState, setting: Setting) -> FinalEvaluation:
    """Put the weights that leave the run in place, and evaluate them on every split that is measured."""
    with run_state.counters.attached():
        run_state.take_leaving_weights()
    run_state.network.eval()
    return final_evaluation(
        {
            split: evaluate_with_logits(run_state.network, feed, setting.preprocessing, setting.replicas)
            for split, feed in setting.evaluations.items()
        },
        keep_logits=run_state.training.keep_logits,
    )
