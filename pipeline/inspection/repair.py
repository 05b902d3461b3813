"""Repair a store: what verification finds corrupt is made pending, and extracted or imported again."""

from collections.abc import Collection

import numpy as np

from pipeline.errors import UserError
from pipeline.inspection.verify import Problem
from pipeline.store.reader import FeatureStore
from pipeline.store.schema import VIDEOS_PER_PARTITION, State
from pipeline.store.writer import FeatureRecord, StoreWriter, write_rows


def make_pending(store: FeatureStore, problems: Collection[Problem]) -> tuple[int, int]:
    """Make the rows and question features of `problems` pending; return the numbers of rows and question features.

    The values of these rows are removed: rows that are then found to be absent must not have any. Raises `UserError` if
    a problem concerns the store itself, or if another run is writing the store.
    """
    general = [problem.message for problem in problems if not problem.feature]
    if general:
        raise UserError(f"store {store.path} cannot be repaired ({general[0]}): extract it again into another --store")
    rows = {(problem.feature, problem.row) for problem in problems if problem.row >= 0}
    question_features = {problem.feature for problem in problems if problem.row < 0}
    with StoreWriter(store.path, "") as writer:
        writer.unseal()
        for feature, row in sorted(rows):
            nothing = np.empty((0, *store.spec(feature).shape))
            # The other rows of a chunk that cannot be read are lost with it.
            lost = write_rows(store.path, feature, row - row % VIDEOS_PER_PARTITION, {row: nothing})
            rows |= {(feature, other) for other in lost}
        writer.record_features([FeatureRecord(row, feature, State.PENDING) for feature, row in sorted(rows)])
        for name in sorted(question_features):
            writer.forget_feature(name)
        writer.seal()
    return len(rows), len(question_features)
