"""On a GPU: every method predicts as on the CPU, and a run trains, resumes and can be loaded on the CPU."""

import copy

import pytest
import torch
from product import PRODUCT, make, predict, stored_batch
from safetensors.torch import load_file
from tiny_run import Killed, train

from pipeline.store.schema import MODALITIES
from train.methods.registry import METHODS
from train.runs.folder import load_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("hidden", [(), ("audio",), ("visual",), MODALITIES], ids=str)
@pytest.mark.parametrize(("method_name", "backbone_name"), PRODUCT)
def test_every_method_predicts_as_on_the_cpu(method_name, backbone_name, hidden):
    method = make(method_name, backbone_name)
    batch = stored_batch(method, hidden)
    expected = predict(method, batch)
    found = predict(copy.deepcopy(method).cuda(), batch.to("cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_on_a_gpu_resumes_and_is_loaded_on_the_cpu(tmp_path, method):
    def stop(progress):
        if (progress.epoch, progress.step) == (2, 1) and progress.validation is None:
            raise Killed

    options = {"inputs": "question"} if method == "reference" else {"method": method, "training": "staged"}
    options |= {"device": "cuda", "ema_decay": 0.9}
    with pytest.raises(Killed):
        train(tmp_path / "run", **options, report=stop)
    trained, _ = train(tmp_path / "run", **options, resume=True)
    assert {values.device.type for values in trained.state_dict().values()} == {"cuda"}
    loaded, _ = load_run(tmp_path / "run", "cpu")
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.equal(values, saved[name]) for name, values in loaded.state_dict().items())
