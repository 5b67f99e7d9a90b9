"""Schedules: who gets which slot when, by hand-made loads."""

from service.estimates.schedule import Load, WaitingRun, expected_ends


def waiting(*names: str, epochs_s: float = 10.0) -> list[WaitingRun]:
    return [WaitingRun(name, index, epochs_s) for index, name in enumerate(names)]


def test_expected_ends_of_runs_that_fit_at_once_are_those_of_each_alone() -> None:
    load = Load("job", start_s=3.0, end_s=2.0, waiting=waiting("a", "b"))
    assert expected_ends([load], slots=2) == {"a": 15.0, "b": 15.0, "job": 15.0}


def test_expected_ends_of_a_group_have_the_sum_of_its_epochs_and_one_end_after_the_other() -> None:
    load = Load("job", start_s=3.0, end_s=5.0, tail_s=2.0, largest_group=4, waiting=waiting("a", "b", "c"))
    assert expected_ends([load], slots=1) == {"a": 38.0, "b": 40.0, "c": 42.0, "job": 42.0}


def test_expected_ends_of_runs_without_a_group_wait_for_a_slot_one_after_the_other() -> None:
    load = Load("job", ready_s=5.0, waiting=waiting("a", "b", "c"))
    assert expected_ends([load], slots=2) == {"a": 15.0, "b": 15.0, "c": 25.0, "job": 25.0}


def test_expected_ends_of_a_job_with_parallel_runs_use_no_more_slots() -> None:
    load = Load("job", at_once=1, waiting=waiting("a", "b"))
    assert expected_ends([load], slots=4)["job"] == 20.0


def test_expected_ends_wait_for_processes_that_are_at_work() -> None:
    other = Load("other", under_way=[{"x": 7.0}])
    load = Load("job", waiting=waiting("a"))
    assert expected_ends([other, load], slots=1) == {"x": 7.0, "other": 7.0, "a": 17.0, "job": 17.0}


def test_expected_ends_serve_the_higher_priority_and_then_the_key_with_less_first() -> None:
    loads = [Load("first", key_id="k", waiting=waiting("a", "b")), Load("second", key_id="m", waiting=waiting("c"))]
    assert expected_ends(loads, slots=2) == {"a": 10.0, "c": 10.0, "b": 20.0, "first": 20.0, "second": 10.0}
    urgent = [loads[0], Load("second", priority=1, waiting=waiting("c", "d"))]
    assert expected_ends(urgent, slots=2)["first"] == 20.0


def test_expected_ends_of_a_run_that_needs_more_slots_than_there_are_do_not_exist() -> None:
    load = Load("job", processes=3, waiting=waiting("a"))
    assert expected_ends([load], slots=2) == {}


def test_expected_ends_of_several_processes_for_one_student_take_as_many_slots() -> None:
    load = Load("job", processes=2, waiting=waiting("a", "b"))
    assert expected_ends([load], slots=3)["job"] == 20.0
