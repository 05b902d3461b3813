"""Weights: files are found, checked and rejected by name; seeded weights are bit-identical everywhere."""

import hashlib
import os
import pickle
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.extractors.weights import (
    Network,
    PublishedFile,
    WeightsSource,
    find_file,
    hash_state_dict,
    hub_cache,
    load_state,
    parse_weights,
    seed_state,
)

STATE = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "norm.bias": torch.tensor([1.0, -2.0])}


def publish(folder: Path, url: str | None = None) -> Network:
    """Save STATE as the published file of a network, with a URL into `folder` unless `url` is given."""
    path = folder / "tiny-published.pth"
    torch.save(STATE, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Network("tiny", (PublishedFile(path.name, url or path.as_uri(), digest),), unused=("fc.*",))


@pytest.fixture
def server(tmp_path):
    """A folder, and the address at which a server offers its files."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/tiny-published.pth"
        running.shutdown()


def test_a_published_file_in_the_folder_is_used(tmp_path):
    network = publish(tmp_path, url="http://127.0.0.1:9/never-requested")
    for kind in ("pretrained", "folder"):
        state = load_state(WeightsSource(kind, tmp_path), network, STATE)
        assert hash_state_dict(state) == hash_state_dict(STATE)


def test_a_file_is_checked_against_a_published_hash_prefix(tmp_path):
    full = publish(tmp_path).published[0]
    known = replace(full, sha256=full.sha256[:8])
    state = load_state(WeightsSource("folder", tmp_path), Network("tiny", (known,)), STATE)
    assert hash_state_dict(state) == hash_state_dict(STATE)
    other = replace(full, sha256="0" * 8)
    with pytest.raises(UserError, match=rf"sha256 {full.sha256}, but the published file has 00000000\.\.\.:"):
        load_state(WeightsSource("folder", tmp_path), Network("tiny", (other,)), STATE)
    with pytest.raises(ValueError, match="fewer than 8"):
        replace(full, sha256=full.sha256[:7])
    with pytest.raises(ValueError, match="fewer than 64"):
        replace(full, sha256=full.sha256[:8], kind="torchscript")


def test_a_published_file_is_downloaded_checked_and_cached(server, tmp_path):
    network = publish(*server)
    cache = tmp_path / "new" / "cache"
    state = load_state(WeightsSource("pretrained", cache), network, STATE)
    assert hash_state_dict(state) == hash_state_dict(STATE)
    assert [path.name for path in cache.iterdir()] == ["tiny-published.pth"]
    (cache / "tiny-published.pth").rename(cache / "another.pth")
    load_state(WeightsSource("pretrained", cache), network, STATE)
    assert {path.name for path in cache.iterdir()} == {"tiny-published.pth", "another.pth"}


def test_the_progress_of_a_download_is_reported_in_bytes(server, tmp_path):
    network = publish(*server)
    shown = []
    find_file(WeightsSource("pretrained", tmp_path / "cache"), network, lambda *state: shown.append(state))
    size = (server[0] / "tiny-published.pth").stat().st_size
    assert shown[-1] == ("tiny-published.pth", size, size)
    assert all(0 < done <= size for _, done, _ in shown)


def test_the_error_for_a_wrong_hash_names_the_file_and_both_hashes(tmp_path):
    network = publish(tmp_path)
    path = tmp_path / "tiny-published.pth"
    path.write_bytes(path.read_bytes() + b"x")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as raised:
        load_state(WeightsSource("folder", tmp_path), network, STATE)
    assert found in str(raised.value)
    assert network.published[0].sha256 in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_download_with_a_wrong_hash_raises_and_leaves_no_file(server, tmp_path):
    network = publish(*server)
    (server[0] / "tiny-published.pth").write_bytes(b"a captive portal's page")
    with pytest.raises(UserError, match=network.published[0].sha256):
        load_state(WeightsSource("pretrained", tmp_path / "cache"), network, STATE)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_error_without_network_names_the_file_and_its_folder(tmp_path):
    (tmp_path / "server").mkdir()
    network = publish(tmp_path / "server", url="http://127.0.0.1:9/tiny-published.pth")
    with pytest.raises(UserError) as raised:
        load_state(WeightsSource("pretrained", tmp_path / "cache"), network, STATE)
    for part in (
        "tiny-published.pth",
        "http://127.0.0.1:9/tiny-published.pth",
        str(tmp_path / "cache"),
        "put",
    ):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_error_for_a_missing_file_lists_the_accepted_names(tmp_path):
    (tmp_path / "server").mkdir()
    network = publish(tmp_path / "server")
    with pytest.raises(UserError, match=r"tiny-published\.pth, tiny\.safetensors, tiny\.pth"):
        load_state(WeightsSource("folder", tmp_path), network, STATE)


def test_torch_and_safetensors_files_of_the_same_weights_have_one_hash(tmp_path):
    network = Network("tiny", ())
    hashes = set()
    for name in ("tiny.pth", "tiny.safetensors"):
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir()
        torch.save(STATE, folder / name) if name.endswith("pth") else save_file(STATE, folder / name)
        hashes.add(hash_state_dict(load_state(WeightsSource("folder", folder), network, STATE)))
    assert hashes == {hash_state_dict(STATE)}


def test_half_precision_files_are_read_as_float32(tmp_path):
    torch.save({name: value.half() for name, value in STATE.items()}, tmp_path / "tiny.pth")
    state = load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), STATE)
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": None}, "missing: norm.bias"),
        ({"extra": torch.zeros(1)}, "unexpected: extra"),
        ({"norm.bias": torch.zeros(3)}, r"wrong shape: norm.bias \[3\] instead of \[2\]"),
        ({"norm.bias": torch.tensor([0.0, float("nan")])}, "not finite: norm.bias"),
        ({"norm.bias": torch.zeros(2).to_sparse()}, "not finite: norm.bias"),
    ],
)
def test_the_error_for_a_mismatching_state_names_the_tensor(tmp_path, change, message):
    state = {name: value for name, value in (STATE | change).items() if value is not None}
    torch.save(state, tmp_path / "tiny.pth")
    with pytest.raises(UserError, match=message):
        load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), STATE)


@pytest.mark.parametrize(("number", "listed"), [(3, "b0, b1, b2$"), (5, "b0, b1, b2 and 2 more$")])
def test_the_error_for_many_mismatching_tensors_names_the_first_ones(tmp_path, number, listed):
    torch.save({}, tmp_path / "tiny.pth")
    wanted = {f"b{index}": torch.zeros(1) for index in range(number)}
    with pytest.raises(UserError, match=f"missing: {listed}"):
        load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), wanted)


def test_only_declared_tensors_are_ignored(tmp_path):
    torch.save(STATE | {"fc.weight": torch.zeros(4)}, tmp_path / "tiny.pth")
    source = WeightsSource("folder", tmp_path)
    assert load_state(source, Network("tiny", (), unused=("fc.*",)), STATE).keys() == STATE.keys()
    with pytest.raises(UserError, match=r"unexpected: fc\.weight"):
        load_state(source, Network("tiny", ()), STATE)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["tiny.pth", "tiny.safetensors"])
def test_files_that_are_not_weights_raise_and_run_no_code(tmp_path, name):
    created = tmp_path / "created"
    with (tmp_path / name).open("wb") as stream:
        pickle.dump({"conv.weight": Payload(created)}, stream, protocol=2)
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), STATE)
    assert not created.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"<html>not found</html>", "it is incomplete or corrupt"),
        (b"no checkpoint", "it is incomplete or corrupt"),
        (b"hi", "it is incomplete or corrupt"),
    ],
)
@pytest.mark.parametrize("name", ["tiny.pth", "tiny.safetensors"])
def test_empty_and_foreign_files_raise(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} cannot be read as weights: {why}; download it again, or save"):
        load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), STATE)


@pytest.mark.parametrize("is_zip", [True, False])
def test_whatever_byte_of_a_file_is_corrupt_the_error_is_the_users(tmp_path, is_zip):
    path = tmp_path / "tiny.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=is_zip)
    data = path.read_bytes()
    for offset in range(0, len(data), 7):
        for corrupt in (data[:offset], data[:offset] + bytes([data[offset] ^ 0x55]) + data[offset + 1 :]):
            path.write_bytes(corrupt)
            with suppress(UserError):
                load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), STATE)


def test_a_file_with_more_than_tensors_raises_with_the_name_of_their_class(tmp_path):
    torch.save({"conv.weight": Path("/")}, tmp_path / "tiny.pth")
    with pytest.raises(UserError, match=r"it contains pathlib\.\w+, not only tensors"):
        load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), STATE)
    torch.save({3: torch.zeros(1)}, tmp_path / "tiny.pth")
    with pytest.raises(UserError, match="not a state dict of tensors"):
        load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), STATE)


def test_a_training_checkpoint_raises_and_the_message_says_what_to_save(tmp_path):
    torch.save({"epoch": 3, "state_dict": STATE}, tmp_path / "tiny.pth")
    with pytest.raises(UserError, match="not a state dict"):
        load_state(WeightsSource("folder", tmp_path), Network("tiny", ()), STATE)


def test_hash_depends_on_names_values_shapes_and_dtypes_but_not_on_order():
    tensor = torch.zeros(4)
    hashes = [
        hash_state_dict(state)
        for state in (
            {"a": tensor},
            {"b": tensor},
            {"a": tensor.reshape(2, 2)},
            {"a": tensor.int()},
            {"a": tensor + 1},
            {"a": tensor, "b": tensor},
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_state_dict({"a": tensor, "b": tensor + 1}) == hash_state_dict({"b": tensor + 1, "a": tensor})
    assert hash_state_dict({"a": STATE["conv.weight"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)}) == (
        hash_state_dict({"a": STATE["conv.weight"]})
    )


def test_seeded_weights_are_reproducible_and_do_not_use_the_global_generator():
    before = torch.random.get_rng_state()
    first, second = (seed_state(STATE, 5, "in") for _ in range(2))
    assert hash_state_dict(first) == hash_state_dict(second)
    assert hash_state_dict(first) != hash_state_dict(seed_state(STATE, 6, "in"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_seeded_weights_have_golden_bits():
    # Computed once by this function; another value would mean that the weights of all seeded stores changed.
    state = seed_state({"conv.weight": torch.empty(64, 16, 3, 3), "norm.weight": torch.empty(64)}, 0, "out")
    assert hash_state_dict(state) == "b2e80c394ce5e6b7493ce2d9a967164e2ff28dce754700f64ee8fb1ac9772a3d"


@pytest.mark.parametrize(
    ("shape", "fan", "connections"),
    [((64, 16, 3, 3), "in", 16 * 9), ((64, 16, 3, 3), "out", 64 * 9), ((64, 144), "in", 144), ((64, 144), "out", 64)],
)
def test_seeded_weights_have_kaiming_variance(shape, fan, connections):
    wanted = {"c.weight": torch.empty(shape), "c.bias": torch.empty(64)}
    wanted |= {f"n.{name}": torch.empty(64) for name in ("weight", "bias", "running_mean", "running_var")}
    state = seed_state(wanted, 0, fan)
    assert state["c.weight"].var().item() == pytest.approx(2 / connections, rel=0.05)
    assert abs(state["c.weight"].mean().item()) < 0.1 * (2 / connections) ** 0.5
    assert {name: value.unique().tolist() for name, value in state.items() if name != "c.weight"} == {
        "c.bias": [0.0], "n.bias": [0.0], "n.running_mean": [0.0], "n.weight": [1.0], "n.running_var": [1.0],
    }  # fmt: skip


def test_parse_weights_accepts_pretrained_seeded_or_a_folder(tmp_path):
    cache = tmp_path / "cache"
    assert parse_weights("pretrained", cache) == WeightsSource("pretrained", cache)
    assert parse_weights("seeded", cache) == WeightsSource("seeded")
    assert parse_weights(str(tmp_path), cache) == WeightsSource("folder", tmp_path)
    with pytest.raises(UserError, match="'sedeed'"):
        parse_weights("sedeed", cache)


def test_constants_record_the_seed_but_not_the_folder_of_a_file(tmp_path):
    assert WeightsSource("seeded", seed=3).constants() == {"weights": "seeded", "seed": 3}
    assert WeightsSource("pretrained", tmp_path).constants() == WeightsSource("folder", tmp_path / "x").constants()
    with pytest.raises(ValueError, match="folder"):
        WeightsSource("pretrained")


def test_a_source_is_picklable(tmp_path):
    source = WeightsSource("pretrained", tmp_path)
    assert pickle.loads(pickle.dumps(source)) == source  # noqa: S301


@pytest.mark.parametrize("environment", [{}, {"TORCH_HOME": "~/torches"}, {"XDG_CACHE_HOME": "/caches"}])
def test_hub_cache_is_that_of_torch_hub(monkeypatch, environment):
    import torch.hub

    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(torch.hub.get_dir()) / "checkpoints"
