"""Answer questions about videos with sound, also when audio or video is missing.

This package has the public names of mavqa. Each is imported when it is first used, so that `import mavqa` is fast:

- data: `load_manifest`, `open_store`, `dataset`, `log_mel`
- the work of the commands: `extract`, `import_features`, `export`, `load_run`, `evaluate`, `ask`, `read_results`,
  `results_frame`
- types: `Manifest`, `FeatureStore`, `QuestionDataset`, `Batch`, `LoadedRun`, `ResultRow`, and `UserError`, which every
  function raises for mistakes that a user can fix

>>> import mavqa
>>> store = mavqa.open_store("store.zarr")
>>> store.read("resnet18-map", store.video_ids[0]).shape  # time step, channel, height, width
(2, 512, 14, 14)
"""

# Type checkers take it as True. The module typing, like all others, is imported only when it is needed.
TYPE_CHECKING = False

if TYPE_CHECKING:
    __version__: str
    from mavqa.functions import ask, dataset, evaluate, export, extract, import_features, results_frame
    from pipeline.errors import UserError
    from pipeline.extractors.networks.log_mel import log_mel
    from pipeline.manifests.manifest import Manifest, load_manifest
    from pipeline.store.reader import FeatureStore, open_store
    from train.asking.loaded_run import LoadedRun, load_run
    from train.data.batch import Batch
    from train.data.dataset import QuestionDataset
    from train.runs.results import ResultRow, read_results

__all__ = [
    "Batch",
    "FeatureStore",
    "LoadedRun",
    "Manifest",
    "QuestionDataset",
    "ResultRow",
    "UserError",
    "ask",
    "dataset",
    "evaluate",
    "export",
    "extract",
    "import_features",
    "load_manifest",
    "load_run",
    "log_mel",
    "open_store",
    "read_results",
    "results_frame",
]

_MODULES = {
    "Batch": "train.data.batch",
    "FeatureStore": "pipeline.store.reader",
    "LoadedRun": "train.asking.loaded_run",
    "Manifest": "pipeline.manifests.manifest",
    "QuestionDataset": "train.data.dataset",
    "ResultRow": "train.runs.results",
    "UserError": "pipeline.errors",
    "ask": "mavqa.functions",
    "dataset": "mavqa.functions",
    "evaluate": "mavqa.functions",
    "export": "mavqa.functions",
    "extract": "mavqa.functions",
    "import_features": "mavqa.functions",
    "load_manifest": "pipeline.manifests.manifest",
    "load_run": "train.asking.loaded_run",
    "log_mel": "pipeline.extractors.networks.log_mel",
    "open_store": "pipeline.store.reader",
    "read_results": "train.runs.results",
    "results_frame": "mavqa.functions",
}


# Not for type checkers: they would accept every name.
if not TYPE_CHECKING:

    def __getattr__(name):
        from importlib import import_module, metadata

        if name == "__version__":
            return metadata.version("mavqa")
        if name not in _MODULES:
            raise AttributeError(f"module 'mavqa' has no attribute {name!r}")
        check_packages()
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def check_packages() -> None:
    """Raise ImportError if `pipeline` or `train` would be imported from elsewhere, such as a user's own `train.py`.

    Neither is imported: the user's script must not run.
    """
    import sys
    from importlib.machinery import PathFinder
    from pathlib import Path

    place = Path(__file__).resolve().parent.parent
    for package in ("pipeline", "train"):
        if package in sys.modules:
            file = getattr(sys.modules[package], "__file__", None)
        else:
            file = getattr(PathFinder.find_spec(package), "origin", None)
        if file is None or Path(file).resolve() != place / package / "__init__.py":
            what = file or "a module without a file"
            raise ImportError(
                f"{what} shadows mavqa's package {package!r}: rename it, or start Python in another folder",
                name="mavqa",
            )
