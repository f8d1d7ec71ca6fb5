from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from raymlops.arrays import Column
from raymlops.errors import InvalidRowsError, NonFiniteError, RowProblem
from raymlops.serving.replica.batcher import Batcher


class Doubler:
    """Doubles x; remembers the rows and the thread of each call; can be held up."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, columns):
        self.gate.wait(5)
        self.calls.append(len(columns["x"]))
        self.threads.add(threading.current_thread().name)
        return {"y": columns["x"] * 2}


def column(*values):
    return {"x": np.array(values, dtype=np.float64)}


def test_each_request_gets_its_own_rows():
    """Requests of one, two and three rows that share a batch are told apart again."""

    async def run():
        batcher = Batcher(Doubler(), max_rows=100)
        sent = [column(1), column(2, 3), column(4, 5, 6)]
        return await asyncio.gather(*(batcher.submit(part, rows=len(part["x"])) for part in sent))

    assert [answer["y"].tolist() for answer in asyncio.run(run())] == [[2], [4, 6], [8, 10, 12]]


def test_while_the_model_runs_others_gather():
    """Nine that come while the first is in the model are one batch."""
    model = Doubler()

    async def run():
        batcher = Batcher(model, max_rows=100)
        model.gate.clear()
        tasks = [asyncio.ensure_future(batcher.submit(column(index), rows=1)) for index in range(10)]
        await asyncio.sleep(0)  # the first batch is in the thread, with all ten of this turn
        await asyncio.sleep(0)
        more = [asyncio.ensure_future(batcher.submit(column(index), rows=1)) for index in range(9)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(*tasks, *more)

    asyncio.run(run())
    assert model.calls == [10, 9]


def test_a_batch_is_never_larger_than_allowed():
    """Ten rows at four a batch run as four, four and two; a request of nine runs in pieces and comes back whole."""
    model = Doubler()

    async def run():
        batcher = Batcher(model, max_rows=4)
        await asyncio.gather(*(batcher.submit(column(index), rows=1) for index in range(10)))
        return await batcher.submit(column(*range(9)), rows=9)

    assert asyncio.run(run())["y"].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert model.calls == [4, 4, 2, 4, 4, 1]


def test_small_requests_take_turns_with_large_ones():
    """A small one waits for one large one at most, and the large ones are not put off by the small ones either."""
    model = Doubler()

    async def run():
        batcher = Batcher(model, max_rows=10)
        model.gate.clear()
        tasks = [asyncio.ensure_future(batcher.submit(column(*range(9)), rows=9)) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the first one is in the thread
        tasks += [asyncio.ensure_future(batcher.submit(column(index), rows=1)) for index in range(20)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert model.calls == [9, 10, 10, 9, 9, 9]


def test_a_small_request_runs_between_the_pieces_of_a_large_one():
    """Of five pieces one is in the model when it comes; the others wait for their turns."""
    model = Doubler()

    async def run():
        batcher = Batcher(model, max_rows=10)
        model.gate.clear()
        large = asyncio.ensure_future(batcher.submit(column(*range(50)), rows=50))
        for _ in range(3):
            await asyncio.sleep(0)  # its first piece is in the thread
        small = asyncio.ensure_future(batcher.submit(column(7), rows=1))
        await asyncio.sleep(0)
        model.gate.set()
        return await asyncio.gather(large, small)

    large, small = asyncio.run(run())
    assert (large["y"].tolist(), small["y"].tolist()) == ([2 * value for value in range(50)], [14])
    assert model.calls == [10, 1, 10, 10, 10, 10]


def test_what_waits_while_the_bound_is_lowered_is_cut_again():
    """Of three requests the first is in the model; each comes back whole."""
    model = Doubler()

    async def run():
        batcher = Batcher(model, max_rows=100)
        model.gate.clear()
        sent = [column(*range(rows)) for rows in (100, 90, 250)]
        tasks = [asyncio.ensure_future(batcher.submit(part, rows=len(part["x"]))) for part in sent]
        for _ in range(3):
            await asyncio.sleep(0)
        batcher.max_rows = 40
        model.gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer["y"].tolist() for answer in answers] == [(2 * part["x"]).tolist() for part in sent]

    asyncio.run(run())
    assert (model.calls[0], sum(model.calls)) == (100, 440)
    assert max(model.calls[1:]) == 40


def test_the_pieces_of_a_request_that_raised_are_not_run():
    """Nobody waits for them."""
    calls = []

    def refuse(columns):
        calls.append(len(columns["x"]))
        raise ArithmeticError

    async def run():
        batcher = Batcher(refuse, max_rows=10)
        with pytest.raises(ArithmeticError):
            await batcher.submit(column(*range(50)), rows=50)
        model = batcher._pool
        await asyncio.get_running_loop().run_in_executor(model, lambda: None)

    asyncio.run(run())
    assert len(calls) <= 2


class Reader:
    """Counts the tokens of each row; remembers the rows, the longest one and the thread of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.threads: list[str] = []

    def __call__(self, columns):
        sizes = np.array([tokens.size for tokens in columns["tokens"]])
        self.calls.append((len(sizes), int(sizes.max())))
        self.threads.append(threading.current_thread().name)
        return {"y": sizes}


TOKENS = Column("tokens", "int", shape=(None,))


def tokens(*sizes):
    array = np.empty(len(sizes), dtype=object)
    array[:] = [np.zeros(size, dtype=np.int64) for size in sizes]
    return {"tokens": array}


def test_a_batch_is_bounded_by_its_padded_elements():
    """A long row does not make the short ones of others as long: 2 x 40 fits in 100 elements, 3 x 40 does not."""
    model = Reader()

    async def run():
        batcher = Batcher(model, max_rows=1000, max_elements=100, varying=[TOKENS])
        sizes = [1, 2, 40, 3, 90, 1, 1]
        return await asyncio.gather(*(batcher.submit(tokens(size), rows=1) for size in sizes))

    assert [answer["y"].tolist() for answer in asyncio.run(run())] == [[1], [2], [40], [3], [90], [1], [1]]
    assert model.calls == [(5, 3), (1, 40), (1, 90)]


def test_one_request_runs_in_pieces_of_so_many_elements():
    """In the order of its rows; a row that is longer than a batch may be runs alone."""
    model = Reader()

    async def run():
        batcher = Batcher(model, max_rows=3, max_elements=100, varying=[TOKENS])
        return await batcher.submit(tokens(1, 60, 30, 500, 1, 1, 1, 1), rows=8)

    assert asyncio.run(run())["y"].tolist() == [1, 60, 30, 500, 1, 1, 1, 1]
    assert model.calls == [(1, 1), (1, 60), (1, 30), (1, 500), (3, 1), (1, 1)]


def test_a_long_row_is_not_run_on_the_loop_because_short_ones_are_fast():
    """Nor after short ones between long ones: the time is learned by elements. One of twice the length may be."""
    model = Reader()

    async def run():
        batcher = Batcher(model, max_rows=1000, varying=[TOKENS])
        for _ in range(5):
            batcher.measure(tokens(10), rows=1)
        model.threads.clear()
        for size in (20, 100_000, 10, 100_000):
            batcher._inline_elements = min(batcher._inline_elements, 20)  # whatever the long ones took here
            await batcher.submit(tokens(size), rows=1)

    asyncio.run(run())
    here = threading.current_thread().name
    assert model.threads == [here, "model_0", here, "model_0"]


def test_a_text_counts_by_its_characters_and_a_missing_one_not_at_all():
    """Together with the other columns of its row."""
    varying = [TOKENS, Column("text", "string", nullable=True)]
    columns = tokens(1, 2, 3) | {"text": np.array(["abc", None, ""], dtype=object)}
    assert Batcher(Reader(), max_rows=9, varying=varying)._lengths(columns) == [4, 2, 3]


def test_a_fast_model_runs_inline_once_measured():
    """After a warm-up that shows it to be fast, small batches need no thread."""
    model = Doubler()

    async def run():
        batcher = Batcher(model, max_rows=100)
        for _ in range(5):
            batcher.measure(column(1), rows=1)
        model.threads.clear()
        await batcher.submit(column(1), rows=1)

    asyncio.run(run())
    assert model.threads == {threading.current_thread().name}


def test_rows_on_which_the_model_takes_long_and_raises_leave_the_loop():
    """Such a run is measured as one that answers: the next one is in the thread."""
    now, model = [0.0], Picky()

    def late(columns):
        outputs = Doubler.__call__(model, columns)
        if 5 in columns["x"]:
            now[0] += 1.0
            raise ArithmeticError
        return outputs

    async def run():
        batcher = Batcher(late, max_rows=100, clock=lambda: now[0])
        batcher.measure(column(1), rows=1)
        threads = []
        for _ in range(3):
            model.threads.clear()
            with pytest.raises(ArithmeticError):
                await batcher.submit(column(5), rows=1)
            threads += model.threads
        return threads

    assert asyncio.run(run()) == [threading.current_thread().name, "model_0", "model_0"]


def test_the_parts_of_a_batch_that_raised_never_run_on_the_loop():
    """However quick the rows of others were: what raised may take long, and the parts come one after the other."""
    threads = []

    def run_model(columns):
        threads.append((len(columns["x"]), threading.current_thread().name))
        if 5 in columns["x"]:
            raise ArithmeticError
        return {"y": columns["x"] * 2}

    async def run():
        batcher = Batcher(run_model, max_rows=100, clock=lambda: 0.0)
        batcher._inline_rows = 1
        tasks = each(batcher, [0, 1, 2, 5])
        await asyncio.wait(tasks)
        return outcomes(tasks)

    assert asyncio.run(run()) == [0, 2, 4, ArithmeticError]
    here = threading.current_thread().name
    assert threads == [(1, here), *((rows, "model_0") for rows in (3, 1, 2, 1, 1))]


def test_an_unmeasured_model_runs_in_the_thread():
    """Until it is known to be fast the event loop is kept free of it."""
    model = Doubler()

    async def run():
        await Batcher(model, max_rows=100).submit(column(1), rows=1)

    asyncio.run(run())
    assert model.threads == {"model_0"}


def test_a_request_whose_client_left_is_not_run():
    """What nobody waits for any more is dropped from the queue."""
    model = Doubler()

    async def run():
        batcher = Batcher(model, max_rows=100)
        model.gate.clear()
        first = asyncio.ensure_future(batcher.submit(column(1), rows=1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left = asyncio.ensure_future(batcher.submit(column(2), rows=1))
        stays = asyncio.ensure_future(batcher.submit(column(3), rows=1))
        await asyncio.sleep(0)
        left.cancel()
        model.gate.set()
        await asyncio.gather(first, stays)

    asyncio.run(run())
    assert model.calls == [1, 1]


class Picky(Doubler):
    """Doubles x, but not 5, on which it raises what ``error`` makes of the values of a batch."""

    def __init__(self, error=lambda values: ArithmeticError()):
        super().__init__()
        self.error = error

    def __call__(self, columns):
        outputs = super().__call__(columns)
        if 5 in columns["x"]:
            raise self.error(columns["x"].tolist())
        return outputs


def naming(place):
    """Return an error of a recipe that names the row at ``place(values)``."""
    return lambda values: InvalidRowsError([RowProblem(place(values), "x", "no such place")])


def each(batcher, numbers):
    return [asyncio.ensure_future(batcher.submit(column(number), rows=1)) for number in numbers]


async def taken(batcher, model, numbers):
    """Submit a row each, and return the requests once the model, at its closed gate, has all of them as one batch."""
    model.gate.clear()
    tasks = each(batcher, numbers)
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def outcomes(tasks):
    """Return the values of those that were answered, and the types of the errors of the others."""
    return [type(task.exception()) if task.exception() else task.result()["y"].item() for task in tasks]


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (lambda values: ArithmeticError(), [8, 4, 4, 2, 1, 1, 2]),
        (naming(lambda values: None), [8, 4, 4, 2, 1, 1, 2]),
        (naming(lambda values: values.index(5)), [8, 7, 1]),
        (naming(lambda values: 0), [8, 7, 3, 4, 2, 1, 1, 2, 1]),
    ],
    ids=["halves", "no row named", "row named", "wrong row named"],
)
def test_a_batch_that_raises_runs_again_in_parts(error, calls):
    """Without the row that the error names, else in halves; only the request that cannot be answered fails."""
    model = Picky(error)

    async def run():
        tasks = each(Batcher(model, max_rows=100), range(8))
        await asyncio.wait(tasks)
        return outcomes(tasks)

    failed = type(error([5]))
    assert asyncio.run(run()) == [0, 2, 4, 6, 8, failed, 12, 14]
    assert model.calls == calls


def test_what_waits_runs_between_the_parts_of_a_batch_that_raised():
    """Three that come meanwhile wait for one part; the parts of a batch that raises later wait for the earlier ones."""
    model = Picky()

    async def run():
        batcher = Batcher(model, max_rows=100)
        tasks = await taken(batcher, model, range(8))
        tasks += each(batcher, [10, 5, 11])
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.wait(tasks)
        return batcher, outcomes(tasks)

    batcher, found = asyncio.run(run())
    assert found == [0, 2, 4, 6, 8, ArithmeticError, 12, 14, 20, ArithmeticError, 22]
    assert model.calls == [8, 4, 3, 4, 2, 1, 1, 2, 1, 2, 1, 1]
    assert batcher.waiting_rows == 0


def test_answers_that_are_not_finite_fail_their_own_request_alone():
    """The others have theirs of the same call: nothing runs again."""
    model = Doubler()

    def check(outputs, first_row):
        if (bad := np.flatnonzero(outputs["y"] == 10)).size:
            raise NonFiniteError(f"at {(bad + first_row).tolist()}")

    async def run():
        batcher = Batcher(model, check=check, max_rows=100)
        sent = [column(1, 2), column(3, 5), column(4)]
        tasks = [asyncio.ensure_future(batcher.submit(part, rows=len(part["x"]))) for part in sent]
        await asyncio.wait(tasks)
        with pytest.raises(NonFiniteError, match=r"at \[1\]"):
            await tasks[1]
        return [tasks[place].result()["y"].tolist() for place in (0, 2)]

    assert asyncio.run(run()) == [[2, 4], [8]]
    assert model.calls == [5]


def test_a_row_that_spoils_the_answers_to_all_fails_alone():
    """A model may scale a batch as a whole: where no answer is finite, the batch runs again in halves."""

    def spoil(columns):
        return {"y": columns["x"] * (np.nan if 5 in columns["x"] else 2)}

    def check(outputs, _first_row):
        if np.isnan(outputs["y"]).any():
            raise NonFiniteError("y is nan")

    async def run():
        tasks = each(Batcher(spoil, check=check, max_rows=100), range(8))
        await asyncio.wait(tasks)
        return outcomes(tasks)

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, NonFiniteError, 12, 14]


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_whoever_is_alone_in_a_batch_is_told_of_answers_that_are_not_finite(rows):
    """Inline, in the thread and in pieces, and by the warm-up."""

    def refuse(_outputs, _first_row):
        raise NonFiniteError("y is nan")

    async def run():
        batcher = Batcher(Doubler(), check=refuse, max_rows=10)
        batcher._inline_rows = 1
        with pytest.raises(NonFiniteError):
            await batcher.submit(column(*range(rows)), rows=rows)
        with pytest.raises(NonFiniteError):
            batcher.measure(column(*range(rows)), rows=rows)

    asyncio.run(run())


def refuse_fives(columns):
    """Double x; raise for the rows that have a 5, as a recipe that counts what it was given."""
    bad = np.flatnonzero(columns["x"] == 5).tolist()
    if bad:
        raise InvalidRowsError([RowProblem(row, "x", "no such place") for row in bad] + [RowProblem(None, None, "all")])
    return {"y": columns["x"] * 2}


def told(error):
    return [(problem.row, problem.field) for problem in error.value.problems]


def test_a_row_that_is_refused_is_named_by_its_place_in_the_request():
    """Of 30 rows at 10 a batch the 25th is row 4 of the third piece; a piece of a lowered bound is cut once more."""

    async def run():
        batcher = Batcher(refuse_fives, max_rows=10)
        sent = column(*[5 if row == 24 else 0 for row in range(30)])
        with pytest.raises(InvalidRowsError, match="row 24, field 'x': no such place") as first:
            await batcher.submit(sent, rows=30)
        with pytest.raises(InvalidRowsError) as warm_up:
            batcher.measure(sent, rows=30)
        task = asyncio.ensure_future(batcher.submit(sent, rows=30))
        await asyncio.sleep(0)
        batcher.max_rows = 3
        with pytest.raises(InvalidRowsError) as lowered:
            await task
        return [told(error) for error in (first, warm_up, lowered)]

    assert asyncio.run(run()) == [[(24, "x"), (None, None)]] * 3


def test_a_row_is_named_beside_the_rows_of_others():
    """A piece that shared its batch with other requests runs alone in the end, and keeps its place in its own."""

    async def run():
        batcher = Batcher(refuse_fives, max_rows=10)
        tasks = each(batcher, [1, 2])
        sent = column(*[5 if row in {11, 12} else 0 for row in range(13)])
        large = asyncio.ensure_future(batcher.submit(sent, rows=13))
        tasks += each(batcher, [3, 4])
        with pytest.raises(InvalidRowsError) as error:
            await large
        await asyncio.wait(tasks)
        return told(error), outcomes(tasks)

    assert asyncio.run(run()) == ([(11, "x"), (12, "x"), (None, None)], [2, 4, 6, 8])


def test_an_answer_that_is_not_finite_is_named_by_its_place_in_the_request():
    """The check is told at which row of the request the rows begin that it sees: 27 is row 7 of the third piece."""

    def check(outputs, first_row):
        if (bad := np.flatnonzero(outputs["y"] == 10)).size:
            raise NonFiniteError(f"at {(bad + first_row).tolist()}")

    async def run():
        batcher = Batcher(Doubler(), check=check, max_rows=10)
        others = each(batcher, [1, 2])
        large = asyncio.ensure_future(batcher.submit(column(*[5 if row == 27 else 0 for row in range(28)]), rows=28))
        with pytest.raises(NonFiniteError, match=r"at \[27\]"):
            await large
        await asyncio.wait(others)
        return outcomes(others)

    assert asyncio.run(run()) == [2, 4]


def test_requests_that_were_given_up_are_not_run_again():
    """Of the halves of a batch that raised one has nobody left, and the other one request."""
    model = Picky()

    async def run():
        batcher = Batcher(model, max_rows=100)
        tasks = await taken(batcher, model, range(8))
        for task in tasks[:7]:
            task.cancel()
        await asyncio.wait(tasks[:7])
        model.gate.set()
        assert (await tasks[7])["y"].tolist() == [14]
        return batcher.waiting_rows

    assert asyncio.run(run()) == 0
    assert model.calls == [8, 1]


def test_each_call_of_the_model_is_timed_by_itself():
    """A replica is not stuck because a batch is several calls."""
    began = []

    def run_model(columns):
        began.append(batcher._started)
        return {"y": columns["x"]}

    batcher = Batcher(run_model, max_rows=30)

    async def run():
        task = asyncio.ensure_future(batcher.submit(column(*range(30)), rows=30))
        await asyncio.sleep(0)
        batcher.max_rows = 10
        await task

    asyncio.run(run())
    assert len(set(began)) == 3
    assert began == sorted(began)
    assert batcher.running_s == 0


@pytest.mark.parametrize("rows", [1, 8, 25])
def test_the_rows_of_clients_who_have_left_do_not_wait(rows):
    """They make room at once, whether the request is small, large or several batches; once."""
    model = Doubler()

    async def run():
        batcher = Batcher(model, max_rows=10)
        first = await taken(batcher, model, [1])
        sent = column(*range(rows))
        left, stays = [asyncio.ensure_future(batcher.submit(sent, rows=rows)) for _ in range(2)]
        await asyncio.sleep(0)
        seen = [batcher.waiting_rows]
        left.cancel()
        await asyncio.wait([left])
        seen.append(batcher.waiting_rows)
        model.gate.set()
        assert (await stays)["y"].tolist() == (2 * sent["x"]).tolist()
        await asyncio.wait(first)
        return [*seen, batcher.waiting_rows]

    assert asyncio.run(run()) == [2 * rows, rows, 0]
    assert sum(model.calls) == 1 + rows


def test_a_model_that_loses_rows_is_an_error():
    """Answers that cannot be told apart are given to nobody."""

    async def run():
        await Batcher(lambda columns: {"y": np.zeros(1)}, max_rows=100).submit(column(1, 2), rows=2)

    with pytest.raises(ValueError, match="answered 2 rows with a column 'y' of 1"):
        asyncio.run(run())


def test_the_worker_can_be_prepared_while_batches_run():
    """Such as the number of threads that torch uses in it: it counts for the calling thread alone."""
    model, prepared = Doubler(), []

    async def run():
        batcher = Batcher(model, max_rows=100)
        batcher._inline_rows = 0
        await batcher.submit(column(1), rows=1)
        batcher.in_worker(lambda: prepared.append(threading.current_thread().name))
        batcher._inline_rows = 0
        await batcher.submit(column(2), rows=1)
        batcher.close()

    asyncio.run(run())
    assert prepared == sorted(model.threads)
