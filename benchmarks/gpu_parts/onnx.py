"""The exported network in onnxruntime on the device: the embeddings of torch, and images a second."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads

from benchmarks.gpu_parts.bench import Bench
from dist_train.backbones import BackboneConfig, build_backbone

PROVIDER = "CUDAExecutionProvider"


def run(bench: Bench) -> None:
    """Export a network and run it."""
    providers = onnxruntime.get_available_providers()
    provider = PROVIDER if bench.cuda else "CPUExecutionProvider"
    if provider not in providers:
        bench.line(provider, skipped=f"onnxruntime here has {', '.join(providers)}; onnxruntime-gpu has {PROVIDER}")
        return
    name, size, batch = ("nano", 32, 2) if bench.small else ("iresnet50", 112, 64)
    with bench.case(f"{name}, {provider}"), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        backbone = build_backbone(BackboneConfig(name=name, embedding_dim=512), size).eval()
        images = torch.rand(batch, 3, size, size) * 2 - 1
        path = Path(folder) / "network.onnx"
        torch.onnx.export(backbone, (images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=[provider])
        used = session.get_providers()
        given = {session.get_inputs()[0].name: images.numpy()}
        found = torch.from_numpy(np.asarray(session.run(None, given)[0]))
        with torch.inference_mode():
            expected = backbone(images)
            cosine = float(F.cosine_similarity(found, expected).min())
            near, pictures = backbone.to(bench.device), images.to(bench.device)
            torch_ms = bench.ms(lambda: near(pictures).cpu(), seconds=0.1 if bench.small else 1.0)
        ms = bench.ms(lambda: session.run(None, given), seconds=0.1 if bench.small else 1.0)
        rates = {"images_s": 1e3 * batch / ms, "torch_images_s": 1e3 * batch / torch_ms}
        bench.line(
            f"{name}, {provider}", ok=cosine > 0.999 and used[0] == provider, cosine=cosine, **rates, batch=batch
        )
