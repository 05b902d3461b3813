"""Repair a store: what verification finds corrupt is made pending, and extraction computes it again."""

from collections.abc import Collection

from pipeline.errors import UserError
from pipeline.inspection.verify import Problem
from pipeline.store.reader import FeatureStore
from pipeline.store.schema import State
from pipeline.store.writer import FeatureRecord, StoreWriter


def make_pending(store: FeatureStore, problems: Collection[Problem]) -> tuple[int, int]:
    """Make the rows and question features of `problems` pending; return the numbers of rows and question features.

    Raises `UserError` if a problem concerns the store itself, or if another run is writing the store.
    """
    general = [problem.message for problem in problems if not problem.feature]
    if general:
        raise UserError(f"store {store.path} cannot be repaired ({general[0]}): extract it again into another --store")
    rows = [problem for problem in problems if problem.row >= 0]
    question_features = {problem.feature for problem in problems if problem.row < 0}
    with StoreWriter(store.path, "") as writer:
        writer.record_features([FeatureRecord(p.row, p.feature, State.PENDING) for p in rows])
        for name in sorted(question_features):
            writer.forget_feature(name)
        writer.seal()
    return len(rows), len(question_features)
