"""The range planner's laws."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from em_assets.fetch.ranges import plan_requests

pieces_of_an_object = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 400)).map(lambda t: (t[0], t[0] + t[1])), max_size=60
)


@given(pieces_of_an_object, st.integers(0, 500), st.integers(1, 2000))
def test_every_piece_lies_in_exactly_one_request(pieces, gap_bytes, max_bytes):
    """Each piece is named once, by the request that holds it whole."""
    requests = plan_requests(pieces, gap_bytes=gap_bytes, max_bytes=max_bytes)
    assert sorted(index for request in requests for index in request.pieces) == list(range(len(pieces)))
    for request in requests:
        for index in request.pieces:
            assert request.start <= pieces[index][0] <= pieces[index][1] <= request.stop


@given(pieces_of_an_object, st.integers(0, 500), st.integers(1, 2000))
def test_requests_are_disjoint_sorted_and_tight(pieces, gap_bytes, max_bytes):
    """No byte is asked for twice, and a request begins and ends with a piece."""
    requests = plan_requests(pieces, gap_bytes=gap_bytes, max_bytes=max_bytes)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(requests))
    for request in requests:
        assert request.start == min(pieces[index][0] for index in request.pieces)
        assert request.stop == max(pieces[index][1] for index in request.pieces)


@given(pieces_of_an_object, st.integers(0, 500), st.integers(1, 2000))
def test_a_request_is_bounded_unless_it_cannot_be_parted(pieces, gap_bytes, max_bytes):
    """Where a request is too large, every place to cut it lies inside a piece; gaps read over are small."""
    for request in plan_requests(pieces, gap_bytes=gap_bytes, max_bytes=max_bytes):
        end = request.start
        for index in request.pieces:
            start, stop = pieces[index]
            assert start - end <= gap_bytes
            if start >= end > request.start:
                assert max(stop, end) - request.start <= max_bytes
            end = max(end, stop)


def test_neighbours_are_asked_for_together():
    """A thousand chunks that lie side by side take a handful of requests."""
    pieces = [(at, at + 40_000) for at in range(0, 40_000_000, 40_000)]
    requests = plan_requests(pieces, gap_bytes=0, max_bytes=4_000_000)
    assert [request.size_bytes for request in requests] == [4_000_000] * 10
