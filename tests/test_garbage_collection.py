import gc

from emergence_train.garbage_collection import no_collection


def test_no_collection_runs_none_and_freezes_what_the_block_made():
    collected = []
    gc.callbacks.append(lambda phase, info: collected.append(phase))
    try:
        gc.collect()
        collected.clear()
        with no_collection():
            objects = [[] for _ in range(10 * gc.get_threshold()[0])]
            assert collected == [] and not gc.isenabled()
        assert gc.isenabled()
        assert not any(item is objects for item in gc.get_objects())  # frozen: not walked again
    finally:
        gc.callbacks.pop()
        gc.unfreeze()


def test_no_collection_leaves_a_disabled_collector_disabled():
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
