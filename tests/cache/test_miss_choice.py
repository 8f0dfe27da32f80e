"""Misses are computed or fetched, by which was measured to take less time."""

import pytest

from mixoff.cache.miss_choice import Candidate, MissChooser

MB = 1_000_000


def chooser(*, link_s: float = 0.005, one_token_s: float = 0.002) -> MissChooser:
    """Return an automatic choice with known times: of a copy of 10 MB, and of an expert."""
    known = MissChooser("auto")
    known.note_fetched(10 * MB, link_s)
    for _ in range(3):
        known.note_computed(1, one_token_s)
    return known


def candidates(*tokens: int) -> list[Candidate]:
    return [Candidate(expert, 10 * MB, number) for expert, number in enumerate(tokens)]


def test_fetch_computes_none_and_compute_all():
    assert MissChooser("fetch").computed(candidates(1, 1)) == set()
    assert MissChooser("compute").computed(candidates(1, 500)) == {0, 1}


@pytest.mark.parametrize(("one_token_s", "computed"), [(0.004, {0}), (0.006, set())])
def test_one_miss_is_computed_or_fetched_by_which_ends_sooner(one_token_s, computed):
    assert chooser(one_token_s=one_token_s).computed(candidates(1)) == computed


def test_of_two_misses_one_is_computed_while_the_other_is_copied():
    assert chooser(one_token_s=0.004).computed(candidates(1, 1)) == {0}


def test_a_slow_link_leaves_all_to_the_cpu():
    assert chooser(link_s=0.1).computed(candidates(1, 1, 1)) == {0, 1, 2}


def test_bytes_queued_on_the_link_count_before_a_fetch():
    known = chooser(one_token_s=0.006)
    assert known.computed(candidates(1)) == set()
    assert known.computed(candidates(1), queued=10 * MB) == {0}


def test_many_tokens_are_fetched_and_few_are_not():
    assert chooser().computed(candidates(500, 1)) == {1}


def test_more_tokens_are_expected_to_take_at_most_in_proportion_to_fewer():
    known = chooser()
    assert known.computed(candidates(2)) == {0}  # 4 ms at most
    assert known.computed(candidates(3)) == set()  # 6 ms
    known.note_computed(2, 0.0021)
    assert known.computed(candidates(4)) == {0}  # 4.2 ms


def test_fewer_tokens_are_expected_to_take_no_longer_than_more():
    known = chooser()
    known.note_computed(9, 0.004)
    assert known.computed(candidates(3)) == {0}


def test_without_times_one_expert_of_one_token_is_computed_in_each_demand():
    unknown = MissChooser("auto")
    for _ in range(3):
        assert unknown.computed(candidates(1, 1)) == {0}
        unknown.note_computed(1, 10.0)
    assert unknown.computed(candidates(1, 1)) == set(), "a copy has to be timed first"
    unknown.note_fetched(10 * MB, 0.005)
    assert unknown.computed(candidates(1, 1)) == set(), "computing takes far longer"


def test_without_times_a_prompt_is_fetched():
    assert MissChooser("auto").computed(candidates(400, 500)) == set()


def test_one_slow_trial_does_not_count():
    known = MissChooser("auto")
    known.note_fetched(10 * MB, 0.005)
    for seconds in (3.0, 0.002, 0.002):  # the first one compiles kernels
        known.note_computed(1, seconds)
    assert known.computed(candidates(1)) == {0}


def test_a_cpu_that_was_slow_is_tried_again_after_a_while():
    known = chooser(one_token_s=1.0)
    trials = [number for number in range(600) if known.computed(candidates(1))]
    assert trials[0] == 256
    known = chooser(one_token_s=1.0)
    for _ in range(1200):
        if known.computed(candidates(1)):
            known.note_computed(1, 0.002)
    assert known.computed(candidates(1)) == {0}


def test_old_times_are_forgotten():
    known = chooser(one_token_s=0.002)
    for _ in range(9):
        known.note_computed(1, 0.009)
    assert known.computed(candidates(1)) == set()


def test_a_fetch_without_bytes_gives_no_time_of_the_link():
    known = MissChooser("auto")
    known.note_fetched(0, 1.0)
    for _ in range(3):
        known.note_computed(1, 0.001)
    assert known.computed(candidates(1)) == set()
