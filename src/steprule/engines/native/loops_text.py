"""The native loops, in the kernels' language: checks before a step, and the step itself.

They read words of Python's and torch's objects. These lie all over memory, and in a training loop
none of it is in the caches any more: each loop therefore asks for the objects of the rows to come
while it looks at one, by addresses that were right when the plan was made and only serve as hints.
What is read, is read through the objects themselves.

Every loop keeps the interpreter's lock, so that Python can free nothing that it looks at. Autograd
can: it replaces a gradient without the lock where a graph of the gradient is asked for. Gradients
that are found in the parameters are therefore held by torch's own references until they are read.
"""

from __future__ import annotations

import enum
import functools

from steprule.engines.native.tensor_layout import INLINE_AXES, TOLD, TensorLayout
from steprule.engines.whole_step import Outcome


class Loop(enum.IntEnum):
    """Index of each function among the compiled ones."""

    DIFFER = 0
    FOLDS = 1
    CHECK = 2
    BUMP = 3
    STEP = 4
    BEGIN = 5  # a step in three calls: Python looks at the sums of squares after the first
    FINISH = 6
    RELEASE = 7
    HOLD = 8  # one guard's gradients looked for and held; and let go
    LET_GO_OF = 9


class ProcessWord(enum.IntEnum):
    """Words that differ from process to process; behind them room for three more."""

    NEXT_ITEM = 0  # PyDict_Next
    NONE = 1  # the object None
    TENSOR = 2  # the class, and its only subclass that is as plain
    PARAMETER = 3
    INCREASE = 4  # Py_IncRef and Py_DecRef
    DECREASE = 5
    NEW_HANDLE = 6  # torch's functions that make and drop a reference
    DELETE_HANDLE = 7
    UNDEFINED = 8  # what stands where a parameter has no gradient
    CELL = 9  # position, key and value in a dict


class GuardWord(enum.IntEnum):
    """Words of a guard: the tensors of one kernel (address_guard.py)."""

    COUNT = 0  # how many parameters
    PARAMS = 1  # the objects that have the gradients: the parameters, or what they are parts of
    RECORDS = 2  # of each, as in TensorWord
    LIKES = 3  # of each one's gradient: fold, first byte in its memory
    GIVEN = 4  # the gradients' objects; 0 to look for them in the parameters
    HANDLES = 5  # what holds gradients that were looked for: 1 + a Python object, a handle, or 0
    FOUND = 6  # the gradients' addresses, 0 for none; behind them, how many there are
    ENTRIES = 7  # rows of the state's dicts, as in ContentsWord
    ENTRY_COUNT = 8
    SLOTS = 9  # of each state tensor, as in TensorWord
    SLOT_COUNT = 10
    CONTROL = 11  # of the kernel (control_block.py)
    PREPARE = 12
    UPDATE = 13
    CHUNKS = 14  # how many, where this thread does all
    TASK = 15  # of a team of threads (threads/work_split.py), or 0
    THREADS = 16
    SQUARES = 17  # what sums squares of gradients, over chunks, and its task
    SQUARES_TASK = 18
    TOTALS = 19  # what adds up its sums
    PASSES = 20  # how many passes of reductions come before the update
    PASS_CALLS = 21  # of each, as in PassWord
    SPECS = 22  # of sharded parameters, how each gradient is to be spread; 0 of plain ones
    DTENSOR = 23  # the class of sharded tensors
    LOCAL_PLACE = 24  # how far in such an object its part here is, and how it is spread
    SPEC_PLACE = 25
    WHOLES = 26  # addresses of words of such objects, each with what must stand there
    WHOLE_COUNT = 27


class PassWord(enum.IntEnum):
    """Words of a pass of reductions: what runs over chunks, its task, what runs over tensors."""

    REDUCE = 0
    REDUCE_TASK = 1
    FINISH = 2


class TensorWord(enum.IntEnum):
    """Words of a tensor that must stay as it was."""

    THING = 0  # its Python object
    CLASS = 1
    IMPL = 2  # the tensor itself
    STORAGE = 3
    DATA = 4  # the storage's memory
    OWNER = 5  # what frees it: another one where the memory is shared until it is written to
    FOLD = 6
    AUTOGRAD = 7  # what autograd keeps of it; a hint only
    COUNTER = 8  # what counts its changes; a hint only


class ContentsWord(enum.IntEnum):
    """Words of a dict or list that must hold what it held."""

    THING = 0
    KNOWN = 1  # a list's items; a dict's keys, each with its value, or 0 where any value will do
    COUNT = 2
    IS_DICT = 3


class StepWord(enum.IntEnum):
    """Words of a whole step (whole_step.py)."""

    GUARDS = 0  # addresses of the guards
    GUARD_COUNT = 1
    GROUPS = 2  # rows of the parameter groups and their lists of parameters
    GROUP_COUNT = 3
    STATE = 4  # the row of the optimizer's state
    WITHOUT_GRAD = 5  # objects of parameters that had no gradient
    WITHOUT_GRAD_COUNT = 6
    REGION = 7  # the function that runs a task on a team of threads, and what it is to run
    ENTRY = 8
    IS_TORCHS = 9  # whether that function is torch's own, else OpenMP's


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

def contents_hold(rows, count, world):
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
    impl = load_int64(record, {record_IMPL})
    thing = load_int64(record, {record_THING})
    if load_int64(thing + {tensor}, 0) != impl:
        return False
    if load_int64(thing + {class}, 0) != load_int64(record, {record_CLASS}):
        return False
    storage = load_int64(record, {record_STORAGE})
    if load_int64(impl + {storage}, 0) != storage:
        return False
    if load_int64(storage + {data}, 0) != load_int64(record, {record_DATA}):
        return False
    if load_int64(storage + {data}, 1) != load_int64(record, {record_OWNER}):
        return False
    return fold_of(impl) == load_int64(record, {record_FOLD})

def slots_hold(guard):
    records = load_int64(guard, {SLOTS})
    count = load_int64(guard, {SLOT_COUNT})
    for i in range(count):
        if i + 12 < count:
            ahead = records + 8 * {record_words} * (i + 12)
            prefetch(load_int64(ahead, {record_THING}))
            ask_for_tensor(load_int64(ahead, {record_IMPL}))
            prefetch(load_int64(ahead, {record_STORAGE}))
        if not is_as_recorded(records + 8 * {record_words} * i):
            return False
    return True

def wholes_hold(guard):
    # Whether sharded tensors have the very parts that they had.
    pairs = load_int64(guard, {WHOLES})
    count = load_int64(guard, {WHOLE_COUNT})
    for i in range(count):
        if i + 16 < count:
            prefetch(load_int64(pairs, 2 * (i + 16)))
        if load_int64(load_int64(pairs, 2 * i), 0) != load_int64(pairs, 2 * i + 1):
            return False
    return True

def local_in(thing, guard):
    # The object of the part here of a sharded tensor; 0 of anything else.
    if thing == 0:
        return 0
    if load_int64(thing + {class}, 0) != load_int64(guard, {DTENSOR}):
        return 0
    return load_int64(thing + load_int64(guard, {LOCAL_PLACE}), 0)

def part_of(thing, i, guard):
    # The part here of a sharded gradient that is spread as expected; 0 of any other.
    local = local_in(thing, guard)
    if local == 0:
        return 0
    spec = load_int64(thing + load_int64(guard, {SPEC_PLACE}), 0)
    if spec != load_int64(load_int64(guard, {SPECS}), i):
        return 0
    return load_int64(local + {tensor}, 0)

def place_of_grad(thing, world):
    # Where the reference to a parameter's gradient is kept.
    meta = load_int64(load_int64(thing + {tensor}, 0) + {autograd}, 0)
    if meta == 0:
        return world + 8 * {UNDEFINED}
    return meta + {grad}

def is_plain(thing, world):
    # Whether an object, if there is one, is of a class that torch treats as its own.
    if thing == 0:
        return True
    # Up to torch 2.9 the last bit says that the tensor keeps the object alive, not the reverse.
    kind = load_int64((thing & -2) + {class}, 0)
    return kind == load_int64(world, {TENSOR}) or kind == load_int64(world, {PARAMETER})

def hold_grads(guard, world):
    # References of our own to the gradients, for as long as they are read.
    count = load_int64(guard, {COUNT})
    params = load_int64(guard, {PARAMS})
    records = load_int64(guard, {RECORDS})
    handles = load_int64(guard, {HANDLES})
    undefined = load_int64(world, {UNDEFINED})
    for i in range(count):
        if i + 16 < count:
            ahead = records + 8 * {record_words} * (i + 16)
            prefetch(load_int64(ahead, {record_THING}))
            prefetch(load_int64(ahead, {record_IMPL}))
            prefetch(load_int64(ahead, {record_AUTOGRAD}) + {grad})
        if i + 8 < count:
            prefetch(load_int64(place_of_grad(load_int64(params, i + 8), world), 0))
        place = place_of_grad(load_int64(params, i), world)
        store_int64(handles, i, 0)
        impl = load_int64(place, 0)
        if impl != undefined:
            # A handle to what has a Python object would look after that as well, which takes long.
            thing = load_int64(impl + {object}, 0)
            if thing != 0 and thing & 1 == 0:
                call_native(load_int64(world, {INCREASE}), thing, 0, 0, 0, 0)
                store_int64(handles, i, thing + 1)
            else:
                call_native(load_int64(world, {NEW_HANDLE}), place, handles + 8 * i, 0, 0, 0)

def let_go(guard, world):
    handles = load_int64(guard, {HANDLES})
    for i in range(load_int64(guard, {COUNT})):
        handle = load_int64(handles, i)
        if handle == 0:
            continue
        store_int64(handles, i, 0)
        if handle & 1 != 0:
            call_native(load_int64(world, {DECREASE}), handle - 1, 0, 0, 0, 0)
        else:
            call_native(load_int64(world, {DELETE_HANDLE}), handle, 0, 0, 0, 0)

def grad_at(i, given, handles, world):
    # A gradient, by its Python object or by our reference.
    if given == 0:
        handle = load_int64(handles, i)
        if handle & 1 != 0:
            return load_int64(handle - 1 + {tensor}, 0)
        if handle != 0:
            return load_int64(handle, 0)
    else:
        thing = load_int64(given, i)
        if thing != load_int64(world, {NONE}):
            return load_int64(thing + {tensor}, 0)
    return load_int64(world, {UNDEFINED})

def thing_at(i, given, handles, world):
    # A gradient's Python object; 0 if there is no gradient, or no object.
    if given == 0:
        handle = load_int64(handles, i)
        if handle & 1 != 0:
            return handle - 1
        if handle != 0:
            return load_int64(load_int64(handle, 0) + {object}, 0) & -2
        return 0
    thing = load_int64(given, i)
    if thing != load_int64(world, {NONE}):
        return thing
    return 0

def ask_for_parts(i, guard, world):
    # The objects and tensors of the parts here of gradients that are looked at soon.
    count = load_int64(guard, {COUNT})
    given = load_int64(guard, {GIVEN})
    handles = load_int64(guard, {HANDLES})
    if i + 18 < count:
        prefetch(thing_at(i + 18, given, handles, world))
    if i + 12 < count:
        prefetch(local_in(thing_at(i + 12, given, handles, world), guard))
    if i + 6 < count:
        local = local_in(thing_at(i + 6, given, handles, world), guard)
        if local != 0:
            ask_for_tensor(load_int64(local + {tensor}, 0))

def outcome_of(guard, world):
    count = load_int64(guard, {COUNT})
    records = load_int64(guard, {RECORDS})
    likes = load_int64(guard, {LIKES})
    given = load_int64(guard, {GIVEN})
    handles = load_int64(guard, {HANDLES})
    found = load_int64(guard, {FOUND})
    undefined = load_int64(world, {UNDEFINED})
    if not contents_hold(load_int64(guard, {ENTRIES}), load_int64(guard, {ENTRY_COUNT}), world):
        return {CHANGED}
    if not slots_hold(guard):
        return {CHANGED}
    if not wholes_hold(guard):
        return {CHANGED}
    are_parts = load_int64(guard, {SPECS}) != 0
    number = 0
    outcome = {AS_PLANNED}
    for i in range(count):
        if i + 24 < count:
            ahead = records + 8 * {record_words} * (i + 24)
            prefetch(load_int64(ahead, {record_THING}))
            ask_for_tensor(load_int64(ahead, {record_IMPL}))
            prefetch(load_int64(ahead, {record_STORAGE}))
            if given != 0:
                prefetch(load_int64(given, i + 24))
        if are_parts:
            ask_for_parts(i, guard, world)
        else:
            if i + 12 < count:
                ask_for_tensor(grad_at(i + 12, given, handles, world))
            if i + 6 < count:
                ahead = grad_at(i + 6, given, handles, world)
                prefetch(load_int64(ahead + {storage}, 0) + {data})
                prefetch(load_int64(ahead + {object}, 0))
        if not is_as_recorded(records + 8 * {record_words} * i):
            return {CHANGED}
        impl = grad_at(i, given, handles, world)
        memory = 0
        if are_parts & (impl != undefined):
            impl = part_of(thing_at(i, given, handles, world), i, guard)
        if impl == 0:
            outcome = {GRADS_CHANGED}
        elif impl != undefined:
            storage = load_int64(impl + {storage}, 0)
            if storage == 0:
                outcome = {GRADS_CHANGED}
            elif not is_plain(load_int64(impl + {object}, 0), world):
                outcome = {GRADS_CHANGED}
            elif fold_of(impl) != load_int64(likes, 2 * i):
                outcome = {GRADS_CHANGED}
            else:
                memory = load_int64(storage + {data}, 0)
                if load_int64(impl + {kind}, 1) == 0:
                    memory = 1  # of no elements: there is a gradient, and nothing to read
                elif memory == 0:
                    outcome = {GRADS_CHANGED}
                memory += load_int64(likes, 2 * i + 1)
                number += 1
        store_int64(found, i, memory)
    store_int64(found, count, number)
    return outcome

def count_change(impl):
    version = load_int64(impl + {counter}, 0) + {version}
    store_int64(version, 0, load_int64(version, 0) + 1)

def count_changes(guard):
    # Graphs that saved a parameter must know that it has changed.
    params = load_int64(guard, {PARAMS})
    are_parts = load_int64(guard, {SPECS}) != 0
    count = load_int64(guard, {COUNT})
    records = load_int64(guard, {RECORDS})
    found = load_int64(guard, {FOUND})
    for i in range(count):
        if i + 16 < count:
            prefetch(load_int64(records, {record_words} * (i + 16) + {record_COUNTER}))
        if load_int64(found, i) != 0:
            impl = load_int64(records, {record_words} * i + {record_IMPL})
            count_change(impl)
            if are_parts:
                count_change(load_int64(load_int64(params, i) + {tensor}, 0))

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

def check(guard, world, found, _):
    store_int64(found, 0, outcome_of(guard, world))
    return 0

def bump(guard, _world, _found, _):
    count_changes(guard)
    return 0

def check_whole(whole, world):
    groups = load_int64(whole, {GROUPS})
    if not contents_hold(groups, load_int64(whole, {GROUP_COUNT}), world):
        return {GROUPS_CHANGED}
    if not contents_hold(load_int64(whole, {STATE}), 1, world):
        return {CHANGED}
    without_grad = load_int64(whole, {WITHOUT_GRAD})
    for i in range(load_int64(whole, {WITHOUT_GRAD_COUNT})):
        place = place_of_grad(load_int64(without_grad, i), world)
        if load_int64(place, 0) != load_int64(world, {UNDEFINED}):
            return {CHANGED}
    guards = load_int64(whole, {GUARDS})
    for i in range(load_int64(whole, {GUARD_COUNT})):
        outcome = outcome_of(load_int64(guards, i), world)
        if outcome != {AS_PLANNED}:
            return outcome
    return {AS_PLANNED}

def run_over_chunks(guard, whole, function, task):
    control = load_int64(guard, {CONTROL})
    store_int64(control, {GRADS}, load_int64(guard, {FOUND}))
    if task == 0:
        call_native(function, control, 0, load_int64(guard, {CHUNKS}), 0, 0)
    else:
        threads = load_int64(guard, {THREADS})
        entry = load_int64(whole, {ENTRY})
        region = load_int64(whole, {REGION})
        if load_int64(whole, {IS_TORCHS}) != 0:
            call_native(region, 0, threads, 1, entry, task)
        else:
            call_native(region, entry, task, threads, 0, 0)

def sum_squares(guard, whole):
    run_over_chunks(guard, whole, load_int64(guard, {SQUARES}), load_int64(guard, {SQUARES_TASK}))
    call_native(load_int64(guard, {TOTALS}), load_int64(guard, {CONTROL}), 0, 0, 0, 0)

def run_kernel(guard, whole):
    if load_int64(load_int64(guard, {FOUND}), load_int64(guard, {COUNT})) == 0:
        return
    control = load_int64(guard, {CONTROL})
    store_int64(control, {GRADS}, load_int64(guard, {FOUND}))
    call_native(load_int64(guard, {PREPARE}), control, 0, 0, 0, 0)
    calls = load_int64(guard, {PASS_CALLS})
    for k in range(load_int64(guard, {PASSES})):
        call = calls + 8 * {pass_words} * k
        run_over_chunks(
            guard, whole, load_int64(call, {REDUCE}), load_int64(call, {REDUCE_TASK})
        )
        call_native(load_int64(call, {FINISH}), control, 0, 0, 0, 0)
    run_over_chunks(guard, whole, load_int64(guard, {UPDATE}), load_int64(guard, {TASK}))
    count_changes(guard)

def let_all_go(whole, world):
    guards = load_int64(whole, {GUARDS})
    for i in range(load_int64(whole, {GUARD_COUNT})):
        let_go(load_int64(guards, i), world)

def held_outcome(whole, world):
    # Holds the gradients; lets them go again if the step can't be taken.
    guards = load_int64(whole, {GUARDS})
    for i in range(load_int64(whole, {GUARD_COUNT})):
        hold_grads(load_int64(guards, i), world)
    outcome = check_whole(whole, world)
    if outcome != {AS_PLANNED}:
        let_all_go(whole, world)
    return outcome

def run_kernels(whole):
    guards = load_int64(whole, {GUARDS})
    for i in range(load_int64(whole, {GUARD_COUNT})):
        run_kernel(load_int64(guards, i), whole)

def step(whole, world, found, _):
    outcome = held_outcome(whole, world)
    store_int64(found, 0, outcome)
    if outcome == {AS_PLANNED}:
        run_kernels(whole)
        let_all_go(whole, world)
    return 0

def begin(whole, world, found, _):
    outcome = held_outcome(whole, world)
    store_int64(found, 0, outcome)
    if outcome == {AS_PLANNED}:
        guards = load_int64(whole, {GUARDS})
        for i in range(load_int64(whole, {GUARD_COUNT})):
            sum_squares(load_int64(guards, i), whole)
    return 0

def finish(whole, _world, _found, _):
    run_kernels(whole)
    return 0

def release(whole, world, _found, _):
    let_all_go(whole, world)
    return 0

def hold(guard, world, found, _):
    hold_grads(guard, world)
    outcome = outcome_of(guard, world)
    if outcome != {AS_PLANNED}:
        let_go(guard, world)
    store_int64(found, 0, outcome)
    return 0

def let_go_of(guard, world, _found, _):
    let_go(guard, world)
    return 0
"""

# Where an object keeps its class.
CLASS = object.__basicsize__ - 8
# Where an object that has a length keeps it, and where a tuple keeps its items: behind its header.
# A list has their address there.
LENGTH = object.__basicsize__
HEADER = tuple.__basicsize__
# Where a dict keeps the address of its keys; only a hint of what will be read.
_DICT_KEYS = 32


@functools.cache
def source_of(words: TensorLayout, grads_word: int) -> str:
    """Return the text of the loops.

    Args:
        words: where torch keeps what in a tensor.
        grads_word: which word of a kernel's control block holds the gradients' addresses.
    """
    places = {
        "tensor": words.tensor,
        "shape": words.shape,
        "storage": words.storage,
        "data": words.data,
        "object": words.object,
        "autograd": words.autograd,
        "grad": words.grad,
        "counter": words.counter,
        "version": words.version,
        "inline": INLINE_AXES,
        "sizes": words.shape + 8,
        "strides": words.shape + 8 * (1 + INLINE_AXES),
        "kind": words.shape + 8 * (1 + 2 * INLINE_AXES),
        "told": TOLD,
        "class": CLASS,
        "length": LENGTH,
        "header": HEADER,
        "dict_keys": _DICT_KEYS,
        "factor": -7046029254386353131,  # odd, so that no change of one word is lost
        "GRADS": grads_word,
        "row_words": len(ContentsWord),
        "record_words": len(TensorWord),
        "pass_words": len(PassWord),
        **{f"row_{word.name}": int(word) for word in ContentsWord},
        **{f"record_{word.name}": int(word) for word in TensorWord},
        **{
            word.name: int(word)
            for kind in (ProcessWord, GuardWord, PassWord, StepWord, Outcome)
            for word in kind
        },
    }
    return _SOURCE.format(**places)
