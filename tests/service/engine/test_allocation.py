"""Free cores and GPUs by the books of what each process holds, and how they are shared among jobs: no engine, no Ray"""

from hypothesis import given
from hypothesis import strategies as st

from service.engine.allocation import FreeResources, Need
from service.engine.run_start import SlotClaim, allot
from workers.cluster.outcomes import Share

CORE = Need(1, 1.0)
HALF, WHOLE = Need(1, 1.0, 0.5), Need(1, 1.0, 1.0)


def on_gpus(*held: tuple[str, float, str | None], cpus: int = 64, gpus: int = 2) -> FreeResources:
    """Of (holder, share, GPU), a core each."""
    return FreeResources(cpus, gpus, [(who, Share(cpus=1.0, gpu=share, gpu_id=gpu)) for who, share, gpu in held])


# --------------------------------------------------------------------------------------------------- what is free


def test_free_resources_have_a_share_of_a_gpu_where_one_gpu_has_it() -> None:
    two_halves = on_gpus(("run_1", 0.5, "7"), ("run_2", 0.5, "8"))
    assert two_halves.fits(HALF)
    assert not two_halves.fits(WHOLE)
    assert two_halves.why_not(WHOLE) == "waits for a whole GPU: 2 of 2 are partly or wholly used by run_1, run_2"
    both_on_one = on_gpus(("run_1", 0.5, "7"), ("run_2", 0.5, "7"))
    assert both_on_one.fits(WHOLE)
    assert not both_on_one.fits(Need(2, 1.0, 1.0))
    assert "waits for 2 whole GPUs: 1 of 2 are" in both_on_one.why_not(Need(2, 1.0, 1.0))


def test_free_resources_count_each_process_with_what_it_was_started_with() -> None:
    """Three shares of a quarter and one of 0.1 are 0.85, whatever runs take today."""
    free = on_gpus(*[("run_1", 0.25, "0")] * 3, ("run_2", 0.1, "0"), gpus=1)
    assert free.fits(Need(1, 1.0, 0.15))
    assert not free.fits(Need(1, 1.0, 0.16))
    assert FreeResources(4, 0, [("run_1", Share(cpus=2.5))]).fits(Need(1, 1.5))
    assert not FreeResources(4, 0, [("run_1", Share(cpus=2.5))]).fits(Need(1, 1.75))


def test_free_resources_give_no_whole_gpu_on_which_a_process_may_be() -> None:
    unknown = on_gpus(("run_1", 0.5, "7"), ("run_2", 0.5, None))
    assert not unknown.is_placed
    assert not unknown.fits(WHOLE)
    assert unknown.fits(HALF)
    # What is asked of Ray and fits nowhere waits there, and holds nothing.
    assert on_gpus(("run_1", 0.5, "7"), ("inference", 0.6, None), gpus=1).fits(HALF)


def test_free_resources_keep_a_gpu_for_inference_that_waits_for_a_whole_one() -> None:
    waits = on_gpus(("run_1", 0.5, "7"), ("run_2", 0.25, "8"), ("inference", 1.0, None), ("inference", 1.0, None))
    assert waits.fits(HALF)
    assert not waits.fits(Need(2, 1.0, 0.5))
    has_one = on_gpus(("run_1", 0.5, "7"), ("inference", 1.0, "8"), ("inference", 1.0, None))
    assert has_one.fits(HALF)


# ------------------------------------------------------------------------------------------------------ whose turn

CLAIMS = st.lists(
    st.tuples(
        st.sampled_from([None, "key_a", "key_b"]),
        st.integers(-2, 2),
        st.integers(0, 4),
        st.integers(0, 6),
        st.integers(1, 3).map(lambda size: Need(size, 1.0)),
    ),
    max_size=6,
).map(lambda rows: [SlotClaim(f"job_{place}", *row, row[-1].processes) for place, row in enumerate(rows)])


def claim(
    job: int, priority: int = 0, wants: int = 5, need: Need = CORE, has: int = 0, key: str | None = None
) -> SlotClaim:
    return SlotClaim(f"job_{job}", key, priority, has, wants, need, need.processes)


def given_of(claims: list[SlotClaim], cores: int) -> dict[str, int]:
    return allot(claims, FreeResources(cores, 0)).given


@given(CLAIMS, st.integers(0, 12))
def test_slots_are_shared_out_by_priority_and_no_more_than_there_are(claims: list[SlotClaim], free: int) -> None:
    """And none stays free but for a job that needs more than there are, and is next."""
    given_ = given_of(claims, free)
    left = free - sum(given_[claim.job_id] * claim.need.processes for claim in claims)
    assert left >= 0
    assert all(given_[claim.job_id] <= claim.wants for claim in claims)
    hungry = [claim for claim in claims if given_[claim.job_id] < claim.wants]
    if hungry:
        first = max(claim.priority for claim in hungry)
        assert any(claim.need.processes > left for claim in hungry if claim.priority == first)
        assert not any(given_[other.job_id] for other in claims if other.priority < first)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
def test_of_equals_none_has_two_slots_more_than_another_that_waits(free: int, mine: int, theirs: int) -> None:
    """Keys first, then the jobs of one key; older jobs have the odd one."""
    claims = [
        SlotClaim(f"job_{place:02}", "key_a" if place < mine else "key_b", 0, 0, 20, CORE)
        for place in range(mine + theirs)
    ]
    given_ = given_of(claims, free)
    of_key = sorted(sum(given_[c.job_id] for c in claims if c.key_id == key) for key in ("key_a", "key_b"))
    assert of_key == [free // 2, free - free // 2]
    for key in ("key_a", "key_b"):
        shares = [given_[claim.job_id] for claim in claims if claim.key_id == key]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] - shares[-1] <= 1


def test_what_somebody_has_already_counts() -> None:
    busy = claim(1, has=2, key="key_a")
    assert given_of([busy, claim(2, key="key_b")], 2) == {"job_2": 2}
    assert given_of([busy, claim(2, key="key_a")], 3) == {"job_2": 2, "job_1": 1}
    # All jobs without a key are one key's.
    assert given_of([claim(1, key="key_a"), claim(2), claim(3)], 2) == {"job_1": 1, "job_2": 1}


def test_allot_keeps_a_gpu_free_for_a_run_that_needs_a_whole_one_and_lets_others_have_the_rest() -> None:
    whole, small, on_cpu = claim(1, 1, 1, WHOLE), claim(2, 0, 9, HALF), claim(3, 0, 2)
    used = [("run_1", 0.5, "7"), ("run_2", 0.5, "8")]
    # One of the two free halves is on the GPU that is kept.
    assert allot([whole, small, on_cpu], on_gpus(*used)) == ({"job_2": 1, "job_3": 2}, "job_1")
    # It is the emptiest: when its last run has ended, the whole one starts, however many small ones wait.
    assert allot([whole, small], on_gpus(("run_1", 0.5, "7"))) == ({"job_1": 1, "job_2": 1}, "job_2")
    assert allot([claim(1, 1, 1, Need(2, 1.0, 1.0)), small, on_cpu], on_gpus(*used)) == ({"job_3": 2}, "job_1")


def test_allot_keeps_free_cores_for_whoever_is_next() -> None:
    assert allot([claim(1, 1, 1, Need(2, 1.0, 1.0)), claim(2)], on_gpus(cpus=1)) == ({}, None)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 3))
def test_a_run_that_needs_a_whole_gpu_starts_in_the_time_of_the_runs_before_it(ends: list[int], gpus: int) -> None:
    """However many small ones come, and whichever ends next: those that were there before it are all it waits for."""
    held = [(f"old_{gpu}_{part}", 0.25, str(gpu)) for gpu in range(gpus) for part in range(4)]
    whole, small = claim(1, 0, 1, WHOLE), claim(2, 0, 99, Need(1, 1.0, 0.25), has=0, key="other")
    # By its key's turn, for it has nothing at work yet.
    for end in [*ends, *[0] * len(held)]:
        if allot([whole, small], on_gpus(*held, gpus=gpus)).given["job_1"]:
            return
        olds = [place for place, (who, *_) in enumerate(held) if who.startswith("old")]
        held.pop(olds[end % len(olds)])
        given_, kept_for = allot([whole, small], on_gpus(*held, gpus=gpus))
        if given_["job_1"]:
            return
        assert kept_for == "job_1"
        for _ in range(given_["job_2"]):
            # As Ray does: the fullest GPU that has room.
            used = {str(gpu): sum(share for _, share, on in held if on == str(gpu)) for gpu in range(gpus)}
            held.append(("new", 0.25, max((gpu for gpu in used if used[gpu] < 1.0), key=lambda gpu: used[gpu])))
    raise AssertionError(f"it still waits: {held}")
