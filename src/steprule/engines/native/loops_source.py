"""The native loops, as source for Numba: checks before a step, and the step itself.

They read words of Python's and torch's objects. These lie all over memory, and in a training loop
none of it is in the caches any more: each loop therefore asks for the objects of the rows to come
while it looks at one, by addresses that were right when the plan was made and only serve as hints.
What is read, is read through the objects themselves.

Every loop keeps the interpreter's lock: nothing that it looks at can be freed meanwhile.
"""

from __future__ import annotations

import enum
import functools

from steprule.engines.native.tensor_words import INLINE_AXES, TOLD, TensorWords


class Loop(enum.IntEnum):
    """Index of each function among the compiled ones."""

    DIFFER = 0
    FOLDS = 1
    CHECK = 2
    BUMP = 3
    STEP = 4
    RENEW = 5


class World(enum.IntEnum):
    """Words that differ from process to process, and three to be written."""

    NEXT_ITEM = 0  # PyDict_Next
    NONE = 1  # the object None
    UNDEFINED = 2  # what stands where a parameter has no gradient
    CELL = 3  # position, key and value in a dict


class Watched(enum.IntEnum):
    """Words of a watch: the tensors of one kernel (watch.py)."""

    COUNT = 0  # how many parameters
    PARAMS = 1  # their objects
    RECORDS = 2  # of each, as in Record
    LIKES = 3  # of each one's gradient: fold, first byte in its memory
    GIVEN = 4  # the gradients' objects; 0 to look for them in the parameters
    FOUND = 5  # the gradients' addresses, 0 for none; behind them, how many there are
    ENTRIES = 6  # rows of the state's dicts, as in Row
    ENTRY_COUNT = 7
    SLOTS = 8  # of each state tensor, as in Record
    SLOT_COUNT = 9
    CONTROL = 10  # of the kernel (kernel_source.Control)
    PREPARE = 11
    UPDATE = 12
    SCRATCH = 13  # where the kernel leaves what nobody reads
    CHUNKS = 14  # how many, where this thread does all
    TASK = 15  # of a team of threads (shares.py), or 0
    THREADS = 16


class Record(enum.IntEnum):
    """Words of a tensor that must stay as it was."""

    THING = 0  # its Python object
    TENSOR = 1
    STORAGE = 2
    DATA = 3  # the storage's memory
    FOLD = 4
    AUTOGRAD = 5  # what autograd keeps of it; a hint only
    COUNTER = 6  # what counts its changes; a hint only


class Row(enum.IntEnum):
    """Words of a dict or list that must hold what it held."""

    THING = 0
    KNOWN = 1  # a list's items; a dict's keys, each with its value, or 0 where any value will do
    COUNT = 2
    IS_DICT = 3


class Whole(enum.IntEnum):
    """Words of a whole step (whole_step.py)."""

    WATCHES = 0  # addresses of the watches
    WATCH_COUNT = 1
    GROUPS = 2  # rows of the parameter groups and their lists of parameters
    GROUP_COUNT = 3
    STATE = 4  # the row of the optimizer's state
    DORMANT = 5  # objects of parameters that had no gradient
    DORMANT_COUNT = 6
    REGION = 7  # the function that runs a task on a team of threads, and what it is to run
    ENTRY = 8


class Outcome(enum.IntEnum):
    """What a check found."""

    AS_PLANNED = 0
    GROUPS_CHANGED = 1
    CHANGED = 2
    UNLIKE = 3  # nothing has changed but what gradients are like


_SOURCE = """\
def fold_of(impl):
    # Sizes, strides and kind folded into one word; of a tensor that keeps its sizes elsewhere, a
    # word that no other has.
    axes = load_int64(impl + {shape}, 0)
    fold = axes
    if axes < 0 or axes > {inline}:
        return -1 - impl
    for axis in range(axes):
        fold = (fold ^ load_int64(impl + {sizes}, axis)) * {factor}
        fold = (fold ^ load_int64(impl + {strides}, axis)) * {factor}
    fold = (fold ^ load_int64(impl + {kind}, 0)) * {factor}
    fold = (fold ^ load_int64(impl + {kind}, 1)) * {factor}
    fold = (fold ^ (load_int64(impl + {kind}, 2) & {told})) * {factor}
    return (fold ^ load_int64(impl + {kind}, 3)) * {factor}

def ask_for_tensor(impl):
    prefetch(impl)
    prefetch(impl + {shape})
    prefetch(impl + {kind} + 24)

def hold(rows, count, world):
    # Whether dicts and lists hold the very objects that they held.
    next_item = load_int64(world, {NEXT_ITEM})
    cell = world + 8 * {CELL}
    for i in range(count):
        if i + 16 < count:
            prefetch(load_int64(rows, {row_words} * (i + 16)))
        if i + 8 < count:
            keys = load_int64(load_int64(rows, {row_words} * (i + 8)) + {dict_keys}, 0)
            prefetch(keys)
            prefetch(keys + 64)
            prefetch(keys + 128)
        row = rows + 8 * {row_words} * i
        thing = load_int64(row, {row_THING})
        known = load_int64(row, {row_KNOWN})
        number = load_int64(row, {row_COUNT})
        if load_int64(thing + {length}, 0) != number:
            return False
        if load_int64(row, {row_IS_DICT}) == 0:
            items = load_int64(thing + {header}, 0)
            for k in range(number):
                if load_int64(items, k) != load_int64(known, k):
                    return False
        else:
            store_int64(cell, 0, 0)
            for k in range(number):
                call_native(next_item, thing, cell, cell + 8, cell + 16, 0)
                value = load_int64(known, 2 * k + 1)
                if load_int64(cell, 1) != load_int64(known, 2 * k):
                    return False
                if value != 0 and load_int64(cell, 2) != value:
                    return False
    return True

def is_as_recorded(record):
    impl = load_int64(record, {record_TENSOR})
    if load_int64(load_int64(record, {record_THING}) + {tensor}, 0) != impl:
        return False
    storage = load_int64(record, {record_STORAGE})
    if load_int64(impl + {storage}, 0) != storage:
        return False
    if load_int64(storage + {data}, 0) != load_int64(record, {record_DATA}):
        return False
    return fold_of(impl) == load_int64(record, {record_FOLD})

def slots_hold(watch):
    records = load_int64(watch, {SLOTS})
    count = load_int64(watch, {SLOT_COUNT})
    for i in range(count):
        if i + 12 < count:
            ahead = records + 8 * {record_words} * (i + 12)
            prefetch(load_int64(ahead, {record_THING}))
            ask_for_tensor(load_int64(ahead, {record_TENSOR}))
            prefetch(load_int64(ahead, {record_STORAGE}))
        if not is_as_recorded(records + 8 * {record_words} * i):
            return False
    return True

def grad_of(thing, world):
    meta = load_int64(load_int64(thing + {tensor}, 0) + {autograd}, 0)
    if meta == 0:
        return load_int64(world, {UNDEFINED})
    return load_int64(meta + {grad}, 0)

def given_grad(thing, world):
    if thing == load_int64(world, {NONE}):
        return load_int64(world, {UNDEFINED})
    return load_int64(thing + {tensor}, 0)

def outcome_of(watch, world):
    count = load_int64(watch, {COUNT})
    params = load_int64(watch, {PARAMS})
    records = load_int64(watch, {RECORDS})
    likes = load_int64(watch, {LIKES})
    given = load_int64(watch, {GIVEN})
    found = load_int64(watch, {FOUND})
    undefined = load_int64(world, {UNDEFINED})
    if not hold(load_int64(watch, {ENTRIES}), load_int64(watch, {ENTRY_COUNT}), world):
        return {CHANGED}
    if not slots_hold(watch):
        return {CHANGED}
    number = 0
    outcome = {AS_PLANNED}
    for i in range(count):
        if i + 24 < count:
            ahead = records + 8 * {record_words} * (i + 24)
            prefetch(load_int64(ahead, {record_THING}))
            ask_for_tensor(load_int64(ahead, {record_TENSOR}))
            prefetch(load_int64(ahead, {record_STORAGE}))
            if given == 0:
                prefetch(load_int64(ahead, {record_AUTOGRAD}) + {grad})
            else:
                prefetch(load_int64(given, i + 24))
        if i + 12 < count:
            if given == 0:
                ask_for_tensor(grad_of(load_int64(params, i + 12), world))
            else:
                ask_for_tensor(given_grad(load_int64(given, i + 12), world))
        if i + 6 < count:
            if given == 0:
                ahead = grad_of(load_int64(params, i + 6), world)
            else:
                ahead = given_grad(load_int64(given, i + 6), world)
            prefetch(load_int64(ahead + {storage}, 0) + {data})
        if not is_as_recorded(records + 8 * {record_words} * i):
            return {CHANGED}
        if given == 0:
            impl = grad_of(load_int64(params, i), world)
        else:
            impl = given_grad(load_int64(given, i), world)
        memory = 0
        if impl != undefined:
            storage = load_int64(impl + {storage}, 0)
            if likes == 0 or storage == 0:
                outcome = {UNLIKE}
            elif fold_of(impl) != load_int64(likes, 2 * i):
                outcome = {UNLIKE}
            else:
                memory = load_int64(storage + {data}, 0)
                if memory == 0:
                    outcome = {UNLIKE}
                memory += load_int64(likes, 2 * i + 1)
                number += 1
        store_int64(found, i, memory)
    store_int64(found, count, number)
    return outcome

def count_changes(watch):
    # Graphs that saved a parameter must know that it has changed.
    count = load_int64(watch, {COUNT})
    records = load_int64(watch, {RECORDS})
    found = load_int64(watch, {FOUND})
    for i in range(count):
        if i + 16 < count:
            prefetch(load_int64(records, {record_words} * (i + 16) + {record_COUNTER}))
        if load_int64(found, i) != 0:
            impl = load_int64(records, {record_words} * i + {record_TENSOR})
            version = load_int64(impl + {counter}, 0) + {version}
            store_int64(version, 0, load_int64(version, 0) + 1)

def differ(items, known, count, found):
    for i in range(count):
        if load_int64(items, i) != load_int64(known, i):
            store_int64(found, 0, 1)
            return 0
    return 0

def folds(impls, count, found, _):
    for i in range(count):
        store_int64(found, i, fold_of(load_int64(impls, i)))
    return 0

def check(watch, world, found, _):
    store_int64(found, 0, outcome_of(watch, world))
    return 0

def bump(watch, _a, _b, _c):
    count_changes(watch)
    return 0

def renew(rows, count, world, found):
    # Take the present values in dicts for known, where any matter; keys must be as they were.
    next_item = load_int64(world, {NEXT_ITEM})
    cell = world + 8 * {CELL}
    store_int64(found, 0, {CHANGED})
    for i in range(count):
        row = rows + 8 * {row_words} * i
        thing = load_int64(row, {row_THING})
        known = load_int64(row, {row_KNOWN})
        number = load_int64(row, {row_COUNT})
        if load_int64(row, {row_IS_DICT}) == 0:
            continue
        if load_int64(thing + {length}, 0) != number:
            return 0
        store_int64(cell, 0, 0)
        for k in range(number):
            call_native(next_item, thing, cell, cell + 8, cell + 16, 0)
            if load_int64(cell, 1) != load_int64(known, 2 * k):
                return 0
            if load_int64(known, 2 * k + 1) != 0:
                store_int64(known, 2 * k + 1, load_int64(cell, 2))
    store_int64(found, 0, {AS_PLANNED})
    return 0

def step(whole, world, found, _):
    groups = load_int64(whole, {GROUPS})
    if not hold(groups, load_int64(whole, {GROUP_COUNT}), world):
        store_int64(found, 0, {GROUPS_CHANGED})
        return 0
    store_int64(found, 0, {CHANGED})
    if not hold(load_int64(whole, {STATE}), 1, world):
        return 0
    dormant = load_int64(whole, {DORMANT})
    for i in range(load_int64(whole, {DORMANT_COUNT})):
        if grad_of(load_int64(dormant, i), world) != load_int64(world, {UNDEFINED}):
            return 0
    watches = load_int64(whole, {WATCHES})
    count = load_int64(whole, {WATCH_COUNT})
    for i in range(count):
        outcome = outcome_of(load_int64(watches, i), world)
        if outcome != {AS_PLANNED}:
            store_int64(found, 0, outcome)
            return 0
    store_int64(found, 0, {AS_PLANNED})
    for i in range(count):
        watch = load_int64(watches, i)
        if load_int64(load_int64(watch, {FOUND}), load_int64(watch, {COUNT})) == 0:
            continue
        control = load_int64(watch, {CONTROL})
        scratch = load_int64(watch, {SCRATCH})
        store_int64(control, {GRADS}, load_int64(watch, {FOUND}))
        call_native(load_int64(watch, {PREPARE}), scratch, scratch + 16, control, 0, 0)
        task = load_int64(watch, {TASK})
        if task == 0:
            chunks = load_int64(watch, {CHUNKS})
            call_native(load_int64(watch, {UPDATE}), scratch, scratch + 16, control, 0, chunks)
        else:
            threads = load_int64(watch, {THREADS})
            entry = load_int64(whole, {ENTRY})
            call_native(load_int64(whole, {REGION}), entry, task, threads, 0, 0)
        count_changes(watch)
    return 0
"""

# Where an object that has a length keeps it, and where a tuple keeps its items: behind its header.
# A list has their address there.
LENGTH = object.__basicsize__
HEADER = tuple.__basicsize__
# Where a dict keeps the address of its keys; only a hint of what will be read.
_DICT_KEYS = 32


@functools.cache
def source_of(words: TensorWords, grads_word: int) -> str:
    """The text of the loops.

    Args:
        words: where torch keeps what in a tensor.
        grads_word: which word of a kernel's control block holds the gradients' addresses.
    """
    places = {
        "tensor": words.tensor,
        "shape": words.shape,
        "storage": words.storage,
        "data": words.data,
        "autograd": words.autograd,
        "grad": words.grad,
        "counter": words.counter,
        "version": words.version,
        "inline": INLINE_AXES,
        "sizes": words.shape + 8,
        "strides": words.shape + 8 * (1 + INLINE_AXES),
        "kind": words.shape + 8 * (1 + 2 * INLINE_AXES),
        "told": TOLD,
        "length": LENGTH,
        "header": HEADER,
        "dict_keys": _DICT_KEYS,
        "factor": -7046029254386353131,  # odd, so that no change of one word is lost
        "GRADS": grads_word,
        "row_words": len(Row),
        "record_words": len(Record),
        **{f"row_{word.name}": int(word) for word in Row},
        **{f"record_{word.name}": int(word) for word in Record},
        **{word.name: int(word) for words in (World, Watched, Whole, Outcome) for word in words},
    }
    return _SOURCE.format(**places)
