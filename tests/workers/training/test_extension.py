"""More epochs for a run that has ended: the bits of a run of as many from the start, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.support.digits import SMALL, Digits
from tests.workers.training.test_training_options import assert_same_run
from workers.config.extension import Extension, check_extension, extended_training
from workers.config.job import JobSpec
from workers.config.schedules import CosineSchedule, OneCycleSchedule, StepSchedule
from workers.config.task import TrainingTask
from workers.config.training import Ema, Training
from workers.config.validation import EarlyStopping
from workers.errors import InvalidJob, Stopped
from workers.events import Epoch, Event, ignore, never
from workers.methods.catalog import parse_method
from workers.run_files import CHECKPOINT
from workers.training.loop import train_run

STEPS = SMALL.model_copy(update={"epochs": 2, "schedule": StepSchedule(milestones=(0.5,)), "keep_checkpoint": True})
# The same step after the first epoch, and one more after the third.
LONGER = STEPS.model_copy(update={"epochs": 4, "schedule": StepSchedule(milestones=(0.25, 0.75))})


def task_of(
    digits: Digits, method: str, folder: Path, training: Training, *, extends: Extension | None = None
) -> TrainingTask:
    job: JobSpec = digits.job(method, training=training).model_copy(update={"extends": extends})
    folders = digits.folders.model_copy(update={"data_dir": folder.parent}) if extends else digits.folders
    task = digits.plan.task_of_run(job, job.runs()[0], folders, folder, threads=1)
    return task.model_copy(update={"folders": digits.folders})


@pytest.mark.usefixtures("without_onnx")
def test_extended_run_ends_with_the_bits_of_one_of_all_epochs_killed_within_or_not(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.loop._SAVING_SHARE", float("inf"))
    whole = train_run(task_of(digits, "ctkd", tmp_path / "whole", LONGER), ignore, never)
    first = task_of(digits, "ctkd", tmp_path / "first", STEPS)
    # It was the third run of its job, and is the only one of the next.
    first = first.model_copy(update={"run": first.run.model_copy(update={"index": 2})})
    train_run(first, ignore, never)
    kept = (tmp_path / "first" / CHECKPOINT).read_bytes()
    extends = Extension(run="run_1", index=2, training=STEPS, checkpoint=f"first/{CHECKPOINT}")
    check_extension(STEPS, LONGER, parse_method("ctkd"), 2)

    events = list[Event]()
    killed = task_of(digits, "ctkd", tmp_path / "a1", LONGER, extends=extends)
    stopped = list[Event]()

    def emit(event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == 3:
            stopped.append(event)

    with pytest.raises(Stopped, match="epoch 4"):
        train_run(killed, emit, lambda: bool(stopped))
    again = task_of(digits, "ctkd", tmp_path / "a2", LONGER, extends=extends)
    result = train_run(again.model_copy(update={"earlier": (tmp_path / "a1",)}), events.append, never)
    assert_same_run(whole, result, tmp_path / "whole", tmp_path / "a2")
    # Of all epochs: nobody has told of this run's first ones.
    assert [event.epoch for event in events if isinstance(event, Epoch)] == [1, 2, 3, 4]
    # Others may go on from it as well.
    assert (tmp_path / "first" / CHECKPOINT).read_bytes() == kept


@pytest.mark.usefixtures("without_onnx")
def test_run_extended_twice_by_restarts_ends_with_the_bits_of_one_that_has_them_killed_within_or_not(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.loop._SAVING_SHARE", float("inf"))
    once = extended_training(COSINE, 3, schedule=None, learning_rate=0.004)
    twice = extended_training(once, 5, schedule=OneCycleSchedule(), learning_rate=0.008)
    for before, after in ((COSINE, once), (once, twice)):
        check_extension(before, after, parse_method("kd"), before.epochs)
    # As `retort reproduce` posts it.
    whole_training = Training.model_validate_json(twice.model_dump_json())
    whole = train_run(task_of(digits, "kd", tmp_path / "whole", whole_training), ignore, never)

    train_run(task_of(digits, "kd", tmp_path / "first", COSINE), ignore, never)
    extends = Extension(run="run_1", training=COSINE, checkpoint=f"first/{CHECKPOINT}")
    train_run(task_of(digits, "kd", tmp_path / "second", once, extends=extends), ignore, never)
    extends = Extension(run="run_2", training=once, checkpoint=f"second/{CHECKPOINT}")
    stopped = list[Event]()
    killed = task_of(digits, "kd", tmp_path / "a1", twice, extends=extends)

    def emit(event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == 4:
            stopped.append(event)

    with pytest.raises(Stopped, match="epoch 5"):
        train_run(killed, emit, lambda: bool(stopped))
    again = task_of(digits, "kd", tmp_path / "a2", twice, extends=extends)
    result = train_run(again.model_copy(update={"earlier": (tmp_path / "a1",)}), ignore, never)
    assert_same_run(whole, result, tmp_path / "whole", tmp_path / "a2")
    config = json.loads((tmp_path / "a2/artifacts/config.json").read_text())
    assert [each["learning_rate"] for each in config["training"]["restarts"]] == [0.004, 0.008]


@pytest.mark.usefixtures("without_onnx")
def test_extended_run_is_not_trained_from_the_start_where_its_checkpoint_is_gone_or_of_another_run(
    digits: Digits, tmp_path: Path
) -> None:
    extends = Extension(run="run_1", training=STEPS, checkpoint=f"first/{CHECKPOINT}")
    with pytest.raises(InvalidJob, match="the last checkpoint of run run_1 is gone"):
        train_run(task_of(digits, "kd", tmp_path / "a1", LONGER, extends=extends), ignore, never)
    train_run(task_of(digits, "ce", tmp_path / "first", STEPS), ignore, never)
    with pytest.raises(InvalidJob, match="or by another version"):
        train_run(task_of(digits, "kd", tmp_path / "a2", LONGER, extends=extends), ignore, never)


def changed(training: Training, **fields: object) -> Training:
    return training.model_copy(update=fields)


EXPRESSION = {
    "preset": "custom",
    "name": "late",
    "terms": [{"policy": {"kind": "expression", "temperature": "1 + 4 * epoch / epochs"}, "loss": "kl"}],
}
COSINE = changed(STEPS, schedule=CosineSchedule())
REFUSED = {
    "fewer": (STEPS, changed(LONGER, epochs=2), "kd", 2, "the number of all epochs, those before included"),
    "stopped early": (changed(STEPS, early_stopping=EarlyStopping()), LONGER, "kd", 1, "early stopping after 1 of 2"),
    "best": (changed(STEPS, keep="best"), LONGER, "kd", 2, "the best epoch's weights"),
    "ema": (changed(STEPS, ema=Ema()), LONGER, "kd", 2, "averaged weights"),
    "cosine": (COSINE, changed(COSINE, epochs=4), "kd", 2, "'cosine' of 4 epochs has other learning rates"),
    "to cosine": (STEPS, changed(COSINE, epochs=4), "kd", 2, "'cosine' of 4 epochs"),
    "stretched": (STEPS, changed(STEPS, epochs=4), "kd", 2, r'"milestones": \[0.25\], "gamma": 0.1'),
    "gamma": (STEPS, changed(LONGER, schedule=StepSchedule(milestones=(0.25,), gamma=0.5)), "kd", 2, "by 0.5"),
    "expression": (STEPS, LONGER, EXPRESSION, 2, "method 'late' reads `epochs`, which were 2 and would be 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_check_extension_refuses_what_depends_on_the_number_of_epochs(case: str) -> None:
    before, after, method, trained, word = REFUSED[case]
    with pytest.raises(InvalidJob, match=word):
        check_extension(before, after, parse_method(method), trained)


def test_check_extension_lets_any_schedule_on_from_a_stated_rate_and_then_its_steps() -> None:
    one_cycle = changed(STEPS, schedule=OneCycleSchedule())
    for before, schedule in ((COSINE, None), (one_cycle, CosineSchedule()), (STEPS, StepSchedule(milestones=(0.5,)))):
        after = extended_training(before, 4, schedule=schedule, learning_rate=0.02)
        check_extension(before, after, parse_method("kd"), 2)
        assert after.phases[0] == before.phases[0]
        assert after.phases[1].schedule == (schedule or before.schedule)
    # Its last phase has stepped after the first of its two epochs, 3 of the run.
    on = extended_training(after, 6, schedule=StepSchedule(milestones=(0.25, 0.75)), learning_rate=None)
    check_extension(after, on, parse_method("kd"), 4)
    assert [restart.after_epochs for restart in on.restarts] == [2]
    with pytest.raises(InvalidJob, match=r'after epochs \[1\] of its last restart, after 2.*"milestones": \[0.25\]'):
        check_extension(after, extended_training(after, 6, schedule=None, learning_rate=None), parse_method("kd"), 4)


def test_check_extension_lets_steps_on_that_are_yet_to_come() -> None:
    """A constant rate, and a milestone at the very end, which no epoch has seen."""
    constant = changed(STEPS, schedule=StepSchedule(milestones=()))
    for milestones in ((), (0.5,), (0.75, 0.9)):
        after = changed(STEPS, epochs=4, schedule=StepSchedule(milestones=milestones, gamma=0.3))
        check_extension(constant, after, parse_method("kd"), 2)
    assert torch.equal(torch.tensor(StepSchedule().boundaries(240)), torch.tensor([150, 180, 210]))


def test_schedule_that_a_refusal_suggests_steps_where_the_run_has_stepped() -> None:
    """Twelve digits of a third are too few for thousands of epochs."""
    for trained, epochs in ((3000, 9000), (7001, 21003), (29, 100_000)):
        before = changed(STEPS, epochs=trained, schedule=StepSchedule(milestones=(1 / 3, 0.7)))
        stretched = changed(before, epochs=epochs)
        with pytest.raises(InvalidJob) as refused:
            check_extension(before, stretched, parse_method("kd"), trained)
        [suggested] = re.findall(r'"milestones": (\[.*?\])', str(refused.value))
        after = changed(before, epochs=epochs, schedule=StepSchedule(milestones=tuple(json.loads(suggested))))
        check_extension(before, after, parse_method("kd"), trained)


def test_plan_that_extends_a_run_has_it_alone_and_bundles_do_not_say_so(digits: Digits) -> None:
    extends = {"run": "run_1", "training": STEPS, "checkpoint": "c"}
    job = digits.job("kd", training=LONGER)
    body = job.model_dump() | {"extends": extends}
    whole = JobSpec.model_validate(body)
    assert whole.of_run(whole.runs()[0]).extends is None
    with pytest.raises(ValueError, match="the job extends run run_1 and has 2 runs"):
        JobSpec.model_validate(body | {"seeds": (0, 1)})
