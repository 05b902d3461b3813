"""Plug-ins that are broken, duplicated or registered under a wrong name; their variants, options and weights."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import load

from pipeline.errors import UserError
from pipeline.extractors import registry as extractors
from pipeline.extractors.registry import make_extractor, make_question_extractor
from pipeline.extractors.weights import Network, WeightsSource, find_file
from pipeline.inspection import doctor
from pipeline.manifests.manifest import Vocabulary
from pipeline.manifests.sources import registry as sources
from pipeline.manifests.sources.interface import Built, Option, Source
from pipeline.plugins import check_options, choose_variant, load_plugin, with_installed

BROKEN = "raise OSError('no licence')"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package with one module of its name and the given entry points."""

    def install(package: str, entry_points: str, code: str = "") -> None:
        folder = tmp_path / package
        information = folder / f"{package}-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(entry_points)
        (folder / f"{package}.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, package, raising=False)

    return install


def test_two_packages_with_one_name_give_a_warning_and_the_first_is_kept(install):
    install("loud_lab", "[mavqa.extractors]\nloudness = loud_lab:Loudness\n")
    install("also_loud", "[mavqa.extractors]\nloudness = also_loud:Loudness\n")
    with pytest.warns(UserWarning, match=r"'loudness' of loud_lab is ignored: also_loud:Loudness has this name"):
        table = with_installed("mavqa.extractors", {})
    assert table["loudness"] == "also_loud:Loudness"


def test_a_broken_plugin_names_its_package_and_the_reason(install):
    install("broken_lab", "[mavqa.extractors]\nloudness = broken_lab:Loudness\n", BROKEN)
    with pytest.raises(UserError, match=r"broken_lab cannot be loaded: OSError: no licence"):
        load_plugin("feature", with_installed("mavqa.extractors", {}), "loudness")


def test_a_broken_plugin_of_ours_is_a_defect_not_a_mistake_of_the_user():
    with pytest.raises(ModuleNotFoundError):
        load_plugin("feature", {"loudness": "pipeline.nothing:Loudness"}, "loudness")


def test_variants_are_chosen_by_name_and_the_first_is_the_default():
    assert choose_variant("method", "ours", ("wide", "slim"), None) == {"variant": "wide"}
    assert choose_variant("method", "ours", ("wide", "slim"), "slim") == {"variant": "slim"}
    assert choose_variant("method", "ours", (), None) == {}
    with pytest.raises(UserError, match=r"'ours' has no variant 'tall': choose one of wide, slim"):
        choose_variant("method", "ours", ("wide", "slim"), "tall")
    with pytest.raises(UserError, match="choose one of none"):
        choose_variant("method", "ours", (), "slim")


def test_options_are_those_of_the_builder():
    def build(config, width: int, rate: float = 0.5, names: tuple[str, ...] = (), is_wide: bool = False):
        """Build nothing."""

    check_options("method", "ours", build, {"width": 3, "rate": 1, "names": ["a"], "is_wide": True})
    check_options("method", "ours", lambda config, **options: None, {"anything": 1})
    with pytest.raises(UserError, match=r"has no option 'height': its options are width, rate, names, is_wide"):
        check_options("method", "ours", build, {"width": 3, "height": 4})
    for value in ("3", 3.0, True, None):
        with pytest.raises(
            UserError, match=rf"option 'width' of method 'ours' is {value!r}: Input should be a valid int"
        ):
            check_options("method", "ours", build, {"width": value})
    for value in ("a", [3], [None]):
        with pytest.raises(UserError, match=r"option 'names' of method 'ours' is .*: Input should be a valid"):
            check_options("method", "ours", build, {"names": value})


def test_an_annotation_that_pydantic_does_not_know_is_not_checked():
    class Network:
        """What a plug-in may take from Python."""

    def build(config, network: Network | None = None, other: "Unknown" = None, anything=None):  # noqa: F821
        """Build nothing."""

    check_options("method", "ours", build, {"network": Network(), "other": 1, "anything": object()})


def test_an_extractor_has_the_name_under_which_it_is_registered(monkeypatch):
    monkeypatch.setitem(extractors.EXTRACTORS, "ears", "pipeline.extractors.vggish:VGGishExtractor")
    with pytest.raises(UserError, match=r"'ears': its extractor has the name 'vggish'"):
        make_extractor("ears")
    monkeypatch.setitem(extractors.QUESTION_EXTRACTORS, "words", "pipeline.extractors.question_tokens:QuestionTokens")
    with pytest.raises(UserError, match=r"'words': its extractor has the name 'tokens-"):
        make_question_extractor("words", Vocabulary(("is",), ("yes",)))
    with pytest.raises(UserError, match="choose another name"):
        make_question_extractor("text", Vocabulary(("is",), ("yes",)))


def test_the_options_of_a_dataset_have_their_types_and_defaults(tmp_path, monkeypatch):
    received = {}

    def build(name, *, progress, **options) -> Built:
        received.update(options)
        raise UserError("enough")

    options = (
        Option("rows", "how many rows", "integer", default=3),
        Option("title", "a title", "text"),
        Option("tags", "tags", "text", is_repeatable=True),
        Option("folder", "a folder", "folder", default=str(tmp_path)),
    )
    monkeypatch.setitem(sources.SOURCES, "own", f"{__name__}:nothing")
    monkeypatch.setattr("pipeline.cli.manifest.load_source", lambda name: Source(build, options, "Mine."))
    ended = CliRunner().invoke(load("manifest"), ["build", "own", "--out", str(tmp_path / "out")])
    assert ended.exit_code == 2
    assert received == {"rows": 3, "title": None, "tags": (), "folder": Path(tmp_path)}


def test_a_broken_dataset_leaves_the_help_of_the_others_alone(install, monkeypatch):
    install("broken_data", "[mavqa.datasets]\nown = broken_data:SOURCE\n", BROKEN)
    monkeypatch.setitem(sources.SOURCES, "own", "broken_data:SOURCE")
    shown = CliRunner().invoke(load("manifest"), ["build", "--help"])
    assert shown.exit_code == 0
    assert "music-avqa" in shown.output
    assert "cannot be loaded" in shown.output
    ended = CliRunner().invoke(load("manifest"), ["build", "own", "--anything", "1"])
    assert ended.exit_code == 2
    assert "broken_data cannot be loaded: OSError: no licence" in ended.output


def test_the_doctor_lists_plugins_and_the_broken_ones(install):
    install("good_lab", "[mavqa.methods]\nfine = good_lab:Fine\n", "class Fine: ...")
    install("broken_lab", "[mavqa.extractors]\nloudness = broken_lab:Loudness\n", BROKEN)
    found = {(kind, name): entry for kind, name, entry in doctor.examine_plugins()}
    assert found["methods", "fine"] == {"is_there": True, "package": "good_lab", "object": "good_lab:Fine"}
    assert not found["extractors", "loudness"]["is_there"]
    assert found["extractors", "loudness"]["why"] == "broken_lab: OSError: no licence"


def test_weights_that_nobody_publishes_are_read_from_a_folder_only(tmp_path):
    own = Network("own", published=())
    for kind in ("pretrained", "folder"):
        source = WeightsSource(kind, tmp_path)
        with pytest.raises(
            UserError, match=r"has no weights of own: put one of these files there: own.safetensors, own.pth"
        ):
            find_file(source, own)
        assert doctor.examine_weights(own, source)["url"] is None
    (tmp_path / "own.pth").touch()
    assert find_file(WeightsSource("pretrained", tmp_path), own) == tmp_path / "own.pth"
