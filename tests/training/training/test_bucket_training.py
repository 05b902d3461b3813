"""Training from a store in a bucket (on a real server process) equals training from a folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import s3fs
from click.testing import CliRunner
from s3_process import BUCKET, s3
from tiny_store import make_manifest, make_store, write_store

from pipeline.manifests.manifest import save_manifest
from train.cli.train import train
from train.runs.config import PRESETS


@pytest.mark.nightly
def test_an_epoch_from_a_bucket_gives_the_same_checkpoint_as_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_store()
    save_manifest(make_manifest(tiny), tmp_path / "data")
    small = replace(PRESETS["demo"], settings={"channels": 16, "heads": 2, "time_steps": 4})
    monkeypatch.setitem(PRESETS, "demo", small)
    with s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        stores = {"folder": str(tmp_path / "store.zarr"), "bucket": f"s3://{BUCKET}/store.zarr"}
        for run, store in stores.items():
            write_store(tiny, store)
            options = ["--manifest", str(tmp_path / "data"), "--store", store, "--out", str(tmp_path / run)]
            options += ["--preset", "demo", "--method", "zero-fill", "--epochs", "1", "--device", "cpu"]
            result = CliRunner().invoke(train, options, catch_exceptions=False)
            assert result.exit_code == 0, result.output
    folder, bucket = ((tmp_path / run / "checkpoint.safetensors").read_bytes() for run in stores)
    assert folder == bucket
