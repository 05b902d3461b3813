"""The functions of `mavqa` that join several parts, such as `extract`, `dataset` and `evaluate`."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.extractors.registry import DEFAULT_FEATURES
from pipeline.manifests.manifest import Manifest, load_manifest
from pipeline.store.location import locate
from pipeline.store.reader import FeatureStore, open_store
from pipeline.store.schema import MODALITIES

if TYPE_CHECKING:
    import pandas

    from pipeline.arrays.export_arrays import ExportPadding, ExportSummary
    from pipeline.arrays.import_arrays import ImportSummary, OnProgress
    from pipeline.extractors.interface import AudioChoice, NormalisationChoice
    from pipeline.media.timeline import Padding
    from pipeline.run.coordinator import Progress as ExtractionProgress
    from pipeline.run.coordinator import Summary
    from train.asking.reply import Reply
    from train.data.dataset import QuestionDataset
    from train.data.loading import Cache
    from train.evaluation.predict import EvaluationProgress
    from train.runs.results import ResultRow


def extract(
    manifest: Manifest | str | Path,
    videos: str | Path,
    store: str | Path,
    features: Sequence[str] = DEFAULT_FEATURES,
    *,
    weights: str | Path = "pretrained",
    decoder: str = "auto",
    device: str = "auto",
    seconds: int | None = None,
    padding: "Padding | None" = None,
    normalisation: "NormalisationChoice | None" = None,
    audio: "AudioChoice | None" = None,
    workers: int | None = None,
    decoding_processes: int | None = None,
    max_cpu_seconds: int | None = None,
    max_memory_gb: float = 1.5,
    max_pixels: int = 64_000_000,
    max_file_gb: float = 20.0,
    scheduler: str | None = None,
    retry_failed: bool = False,
    accept: Sequence[str] = (),
    break_lock: bool = False,
    on_progress: "Callable[[ExtractionProgress], None]" = lambda progress: None,
) -> "Summary":
    """Extract what is pending of the features of a manifest's videos and questions into a store.

    The options are those of `mavqa-extract`, with the same defaults; its messages name them `--weights` and so on. The
    local workers are processes, so a script calls this under `if __name__ == "__main__":`. The summary has {feature:
    {state: number of videos}} and the failures with their reasons. Raises `UserError` for what the command would
    refuse.

    >>> summary = extract("data", "data/videos", "store.zarr", ["vggish", "tokens"], weights="seeded", seconds=2)
    >>> summary.states["vggish"]["failed"], summary.is_complete
    (0, True)
    """
    from pipeline.run.coordinator import extract as run_extraction
    from pipeline.run.request import Request

    request = Request(
        features=_names(features),
        weights=str(weights),
        decoder=decoder,
        device=device,
        seconds=seconds,
        padding=padding,
        normalisation=normalisation,
        audio=audio,
        workers=workers,
        decoding_processes=decoding_processes,
        max_cpu_seconds=max_cpu_seconds,
        max_memory_gb=max_memory_gb,
        max_pixels=max_pixels,
        max_file_gb=max_file_gb,
        scheduler=scheduler,
        retry_failed=retry_failed,
        accept=_names(accept),
        break_lock=break_lock,
    )
    return run_extraction(_manifest(manifest), Path(videos).absolute(), locate(store).address, request, on_progress)


def import_features(
    manifest: Manifest | str | Path,
    store: str | Path,
    sources: Mapping[str, str | Path],
    *,
    seconds: int | None = None,
    made_by: str | None = None,
    absent: Collection[str] = (),
    break_lock: bool = False,
    on_progress: "OnProgress" = lambda task, done, total: None,
) -> "ImportSummary":
    """Import published arrays of a manifest's videos and questions into a store; no video is read.

    `sources` {feature: folder of its arrays}, `<video id>.npy` [time, ...] or `<question id>.npy` [1, ...]. The options
    are those of `mavqa-import-features`, with the same defaults. The summary has {feature: {state: number of videos}}
    and the failures with their reasons. Raises `UserError` for what the command would refuse.

    >>> export("store.zarr", "feats", ["vggish"]).written
    {'vggish': 15}
    >>> summary = import_features("data", "imported.zarr", {"vggish": "feats/vggish"}, seconds=2, absent=["audio"])
    >>> summary.states["vggish"]["complete"], summary.is_complete
    (15, True)
    """
    from pipeline.arrays.import_arrays import import_features as run_import

    return run_import(
        _manifest(manifest),
        locate(store).address,
        {name: Path(folder) for name, folder in sources.items()},
        seconds=seconds,
        made_by=made_by,
        absent=_names(absent),
        break_lock=break_lock,
        on_progress=on_progress,
    )


def export(
    store: FeatureStore | str | Path,
    out: str | Path,
    features: Sequence[str] | None = None,
    *,
    manifest: Manifest | str | Path | None = None,
    padding: "ExportPadding" = "repeat",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> "ExportSummary":
    """Write features of a store as the arrays that the releases' own code reads, one float32 `.npy` each.

    The options are those of `mavqa-export`, with the same defaults; `features` None: all that a release has arrays of.
    What an earlier call has finished is not written again. The summary has {feature: number of arrays}, and what was
    not exported. Raises `UserError` for what the command would refuse.
    """
    from pipeline.arrays.export_arrays import carry_out, plan_export

    loaded = None if manifest is None else _manifest(manifest)
    names = None if features is None else _names(features)
    return carry_out(plan_export(_store(store), Path(out), names, loaded, padding), on_progress)


def dataset(
    store: FeatureStore | str | Path,
    manifest: Manifest | str | Path,
    split: str,
    features: Sequence[str] = DEFAULT_FEATURES,
    *,
    time_steps: int = 10,
    map_size: int | None = None,
    cache: "Cache" = "auto",
    cache_dir: str | Path | None = None,
    memory_bytes: int | None = None,
) -> "QuestionDataset":
    """Return the questions of one split with `features`, as a torch dataset for any model.

    An item is a `Batch` of one question. `loader` returns a torch `DataLoader` of batches: [batch, time, ...] per
    feature, with masks [batch, time] that are False where a modality is missing. `time_steps` are spread evenly over
    the stored seconds; maps are pooled to `map_size` x `map_size`, None keeps them. `cache`: where decoded features are
    kept, "memory", "disk" (files in `cache_dir`; None: beside the store) or "none"; "auto": in memory if they fit into
    `memory_bytes` (None: half of what is free), else on disk. Raises `UserError` if the store does not have a feature,
    a video or a question.

    >>> questions = dataset("store.zarr", "data", "train", ["tokens", "vggish"], time_steps=2)
    >>> batch = next(iter(questions.loader(64, shuffle=True)))
    >>> batch.audio["vggish"].shape, batch.audio_mask.shape, batch.answer.shape
    (torch.Size([64, 2, 128]), torch.Size([64, 2]), torch.Size([64]))
    """
    from train.data.dataset import ModelInputs, QuestionDataset
    from train.data.feature_bank import FeatureBank
    from train.data.loading import LoadingSettings

    loading = LoadingSettings(cache, memory_bytes, None if cache_dir is None else Path(cache_dir))
    features, opened = _names(features), _store(store)
    of_questions = {"tokens", *opened.question_feature_names}
    modality_of = {name: "question" if name in of_questions else opened.spec(name).modality for name in features}
    by_modality = {
        modality: tuple(name for name in features if modality_of[name] == modality)
        for modality in ("question", *MODALITIES)
    }
    inputs = ModelInputs(by_modality, time_steps, map_size=map_size)
    return QuestionDataset(FeatureBank(opened, loading), _manifest(manifest), split, inputs)


def evaluate(
    run: str | Path,
    manifest: Manifest | str | Path | None = None,
    store: FeatureStore | str | Path | None = None,
    split: str | None = None,
    *,
    scenarios: Sequence[str] | None = None,
    device: str = "auto",
    on_progress: "Callable[[EvaluationProgress], None] | None" = None,
) -> "list[ResultRow]":
    """Evaluate a trained run and return a row per scenario: of the run's method, and of each floor.

    By default all scenarios of the test split (val, if there is none), with the manifest and the store of the training.
    The rows are also appended to the run's results, and probabilities are calibrated, as by `mavqa-evaluate`. Raises
    `UserError` for what the command would refuse.

    >>> rows = evaluate("runs/zero-fill", scenarios=["complete", "audio-missing"])
    >>> [(row.method, row.scenario) for row in rows if row.kind == "model"]
    [('zero-fill', 'complete'), ('zero-fill', 'audio-missing')]
    """
    from train.data.feature_bank import FeatureBank
    from train.data.scenarios import ALL_SCENARIOS
    from train.evaluation.calibration import calibrate_run
    from train.evaluation.evaluate_run import default_split, evaluate_run
    from train.runs.device import choose_device
    from train.runs.folder import read_config

    run, scenarios = Path(run), _names(ALL_SCENARIOS if scenarios is None else scenarios)
    config = read_config(run)
    loaded, opened = _manifest(manifest or config.manifest), _store(store or config.store)
    split = split or default_split(loaded)
    device = str(choose_device(device))
    bank = FeatureBank(opened, device=device)
    calibration = calibrate_run(run, loaded, bank, device)
    temperatures = None if calibration is None else calibration.temperatures
    return evaluate_run(
        run, loaded, bank, split, scenarios, device=device, report=on_progress, temperatures=temperatures
    )


def ask(
    run: str | Path,
    video: str | Path,
    questions: str | Iterable[str],
    *,
    choices: Sequence[str] | None = None,
    drop: Collection[str] = (),
    device: str = "auto",
    weights: str | Path | None = None,
    store: str | Path | None = None,
) -> "Reply":
    """Return the answers of a trained run to questions about a media file; for several files, load the run once.

    The options are those of `mavqa-ask`, and of `LoadedRun.ask`. Nothing is written. Raises `UserError` for what the
    command would refuse.

    >>> reply = ask("runs/zero-fill", "data/videos/syn00000004.mp4", "Is there a voiceover?", drop=["audio"])
    >>> reply.scenario, len(reply.questions[0].answers) > 1
    ('audio-missing', True)
    """
    from train.asking.loaded_run import load_run

    loaded = load_run(run)
    return loaded.ask(video, questions, choices=choices, drop=drop, device=device, weights=weights, store=store)


def results_frame(rows: "Iterable[ResultRow]") -> "pandas.DataFrame":
    """Return result rows as a pandas data frame: a row per result row and set of questions.

    `level` and `group` name the set: ("overall", "overall"), ("group", "Audio") or ("type", "Audio Counting").
    `accuracy` is in percent. Raises `UserError` without pandas, which the extra `pandas` installs.

    >>> frame = results_frame(evaluate("runs/zero-fill", scenarios=["complete"]))
    >>> list(frame[frame.level == "overall"].method)
    ['zero-fill', 'template-majority', 'filled-majority']
    """
    from train.runs.results import to_records

    try:
        import pandas
    except ImportError:
        raise UserError("results_frame needs pandas: install it, or mavqa with its extra pandas") from None
    return pandas.DataFrame(to_records(rows))


def _names(names: Collection[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _manifest(manifest: Manifest | str | Path) -> Manifest:
    return manifest if isinstance(manifest, Manifest) else load_manifest(manifest)


def _store(store: FeatureStore | str | Path) -> FeatureStore:
    return store if isinstance(store, FeatureStore) else open_store(store)
