"""`mavqa-doctor`: each missing component is reported with the reason and a remedy."""

import ctypes.util
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from nvdec_stand_in import StandIn

from pipeline import machine
from pipeline.cli.doctor import _describe_nvdec
from pipeline.cli.doctor import doctor as command
from pipeline.extractors.weights import Network, PublishedFile, WeightsSource
from pipeline.inspection import doctor
from pipeline.media.decoders.interface import DecoderLoadError
from pipeline.media.decoders.pyav import nvdec as nvdec_decoder
from pipeline.media.decoders.registry import choose_decoder

SHA256_OF_1 = hashlib.sha256(b"1").hexdigest()
NETWORK = Network("toy", (PublishedFile("toy-1.pth", "https://example.org/toy-1.pth", SHA256_OF_1),))


def library_loader(*names: str) -> Any:
    """Return a replacement for ctypes.CDLL that loads only these libraries."""

    def load(name: str) -> object:
        if name not in names:
            raise OSError(f"{name}: cannot open shared object file")
        return object()

    return load


def test_pyav_is_available_with_its_version() -> None:
    entry = doctor.examine_decoder("pyav")
    assert entry["is_there"]
    assert entry["version"].startswith("pyav ")


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_a_decoder_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    entry = doctor.examine_decoder(name)
    assert not entry["is_there"]
    assert name in entry["why"]
    assert entry["remedy"].startswith(f"pip install 'mavqa[{name}]'")
    assert entry["exceptions"]


def test_torchcodec_without_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(ffmpeg_major_version=None))
    entry = doctor.examine_decoder("torchcodec")
    assert "no libraries of FFmpeg" in entry["why"]
    assert "apt-get install ffmpeg" in entry["remedy"]
    assert choose_decoder()[0] == "pyav"


def test_torchcodec_built_for_another_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchcodec.py").write_text("raise OSError('undefined symbol: aoti_torch_xyz')\n")
    monkeypatch.delitem(sys.modules, "torchcodec", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = doctor.examine_decoder("torchcodec")
    assert f"does not fit torch {torch.__version__} (undefined symbol" in entry["why"]
    assert "--upgrade" in entry["remedy"]


def test_ffmpeg_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"avcodec": "libavcodec.so.59"}
    monkeypatch.setattr(ctypes.util, "find_library", found.get)
    assert doctor.examine_ffmpeg_library("avcodec") == {"is_there": True, "file": "libavcodec.so.59"}
    missing = doctor.examine_ffmpeg_library("swscale")
    assert not missing["is_there"]
    assert "libswscale" in missing["why"]
    assert "apt-get install ffmpeg" in missing["remedy"]


@pytest.mark.parametrize(
    ("built_for", "libraries", "has_device", "cuda", "nvdec"),
    [
        (None, (), False, "built without CUDA", "libnvcuvid.so.1 does not load"),
        ("13.0", (), False, "libcuda.so.1 does not load", "libnvcuvid.so.1 does not load"),
        ("13.0", (doctor.DRIVER,), False, "sees no device", "libnvcuvid.so.1 does not load"),
        ("13.0", (doctor.DRIVER, doctor.VIDEO_DRIVER), False, "sees no device", "CUDA is unavailable"),
        ("13.0", (doctor.DRIVER,), True, "", "libnvcuvid.so.1 does not load"),
        ("13.0", (doctor.DRIVER, doctor.VIDEO_DRIVER), True, "", ""),
    ],
)
def test_gpu(
    monkeypatch: pytest.MonkeyPatch,
    built_for: str | None,
    libraries: tuple[str, ...],
    has_device: bool,
    cuda: str,
    nvdec: str,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "a GPU")
    monkeypatch.setattr(doctor.ctypes, "CDLL", library_loader(*libraries))
    monkeypatch.setattr(nvdec_decoder, "Nvdec", StandIn)
    found = doctor.examine_gpu()
    for entry, why in ((found["cuda"], cuda), (found["nvdec"], nvdec)):
        assert entry["is_there"] == (not why)
        assert why in entry.get("why", "")
        assert entry["is_there"] or entry["remedy"]
        assert entry["enables"]


def test_torch_is_queried_for_a_gpu_only_if_a_driver_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    queries: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: queries.append(True) or True)
    monkeypatch.setattr(machine, "AMD_DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(machine.ctypes, "CDLL", library_loader())
    assert not machine.sees_gpu()
    assert not queries
    monkeypatch.setattr(machine.ctypes, "CDLL", library_loader(machine.DRIVER))
    assert machine.sees_gpu()
    monkeypatch.setattr(machine.ctypes, "CDLL", library_loader())
    machine.AMD_DRIVER.touch()
    assert machine.sees_gpu()
    assert len(queries) == 2


@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, ("0", "1")), ("3, 5", ("3", "5")), ("GPU-4f,MIG-a0,-1,7", ("GPU-4f", "MIG-a0"))],
)
def test_each_visible_gpu_is_named_as_in_the_environment(
    variable: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "sees_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert machine.visible_gpus() == expected
    monkeypatch.setattr(machine, "sees_gpu", lambda: False)
    assert machine.visible_gpus() == ()


def test_weights_in_the_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "toy-1.pth").write_bytes(b"1")
    assert doctor.examine_weights(NETWORK, WeightsSource("folder", tmp_path))["file"] == str(tmp_path / "toy-1.pth")


def test_the_remedy_for_missing_weights_names_files_folder_and_url(tmp_path: Path) -> None:
    entry = doctor.examine_weights(NETWORK, WeightsSource("folder", tmp_path))
    assert (entry["is_there"], entry["why"]) == (False, f"not in {tmp_path}")
    assert entry["remedy"] == (
        "put toy-1.pth or toy.safetensors or toy.pth there, for example from https://example.org/toy-1.pth"
    )


def test_custom_weights_are_accepted_in_a_folder_but_not_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "toy.pth").write_bytes(b"1")
    assert doctor.examine_weights(NETWORK, WeightsSource("folder", tmp_path))["file"] == str(tmp_path / "toy.pth")
    entry = doctor.examine_weights(NETWORK, WeightsSource("pretrained", tmp_path))
    assert not entry["is_there"]
    assert entry["remedy"] == (
        "put toy-1.pth there, for example from https://example.org/toy-1.pth; mavqa-extract downloads it when online"
    )


def test_weights_with_a_wrong_hash_are_reported(tmp_path: Path) -> None:
    tmp_path = tmp_path / "mine: two"
    tmp_path.mkdir()
    (tmp_path / "toy-1.pth").write_bytes(b"2")
    entry = doctor.examine_weights(NETWORK, WeightsSource("folder", tmp_path))
    assert not entry["is_there"]
    assert entry["why"].startswith(f"{tmp_path / 'toy-1.pth'} has sha256 {hashlib.sha256(b'2').hexdigest()}, but the")
    assert entry["remedy"] == "delete it and download https://example.org/toy-1.pth"


def test_a_weights_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    shown = CliRunner().invoke(command, ["--weights", str(tmp_path / "nowhere")])
    assert shown.exit_code == 2
    assert shown.output == f"Error: --weights {tmp_path / 'nowhere'} does not exist: pass a folder of checkpoints\n"


def test_all_networks_of_the_extractors_are_examined() -> None:
    assert [network.name for network in doctor.list_networks()] == ["clip-vit-b32", "r2plus1d", "resnet18", "vggish"]


def test_the_table_and_the_json_document_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    table = CliRunner().invoke(command, ["--weights", str(tmp_path)])
    shown = CliRunner().invoke(command, ["--weights", str(tmp_path), "--json"])
    assert (table.exit_code, shown.exit_code) == (0, 0)
    document = json.loads(shown.stdout)
    assert document["decoders"]["pyav"]["is_there"]
    decord, vggish = document["decoders"]["decord"], document["weights"]["vggish"]
    missing = [line for line in table.stdout.splitlines() if "decord" in line or "vggish" in line]
    assert missing == [
        f"missing: decoder decord ({decord['why']}): {decord['remedy']}",
        f"missing: weights vggish ({vggish['why']}): {vggish['remedy']}",
    ]
    assert "mavqa-extract downloads it" not in table.stdout
    assert f"--decoder auto uses {document['auto']['name']}" in table.stdout
    assert document["gpu"].keys() == {"cuda", "nvdec"}


def test_what_the_gpu_decodes_and_what_pyav_decodes_instead_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvdec_decoder, "Nvdec", lambda: StandIn(refused={"vp9"}))
    found = doctor.examine_nvdec()
    assert found["decodes"] == {"h264 yuv420p": 0, "hevc yuv420p": 0, "hevc yuv420p10le": 0}
    assert list(_describe_nvdec(found)) == [
        "--decoder pyav-cuda decodes on the GPU, compared with PyAV's frames: h264 yuv420p (equal), hevc yuv420p "
        "(equal), hevc yuv420p10le (equal)",
        "PyAV decodes instead: vp9 yuv420p (failed: Invalid data found when processing input); all other codecs and "
        "pixel formats, such as AV1",
    ]
    found["decodes"]["h264 yuv420p"] = 3
    assert "h264 yuv420p (differs by up to 3 of 255 levels), hevc" in next(_describe_nvdec(found))


def test_a_gpu_that_cannot_be_opened_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise DecoderLoadError("pyav-cuda", "the GPU cannot be opened (no device)", "make a GPU visible")

    monkeypatch.setattr(nvdec_decoder, "Nvdec", refuse)
    found = doctor.examine_nvdec()
    assert found == {
        "is_there": False,
        "why": "the GPU cannot be opened (no device)",
        "remedy": "make a GPU visible",
    }
    assert list(_describe_nvdec(found)) == []
