"""The format web: a page that classifies pictures in the browser, by onnxruntime-web.

The page needs no program on the server. Its template is in `page/`.
"""

import base64
import functools
import hashlib
import io
import json
import shutil
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from cifar_jax import files
from cifar_jax.errors import UserError
from cifar_jax.export import onnx_file
from cifar_jax.export.subject import Format, Subject
from cifar_jax.text import printable

_TEMPLATE = Path(__file__).with_name("page")
_VERSION = "1.30.0"
_ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{_VERSION}/dist/"
# The files of onnxruntime-web that the page loads, and the sums of that version's.
_RUNTIME = {
    "ort.wasm.bundle.min.mjs": (
        "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"
    ),
    "ort-wasm-simd-threaded.wasm": (
        "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"
    ),
}
_NUM_EXAMPLES = 10


def find_runtime(folder: Path) -> Path:
    """Returns the folder of onnxruntime-web's files within its npm package.

    Raises:
      UserError: the files are not there.
    """
    for place in (folder, folder / "dist", folder / "node_modules" / "onnxruntime-web" / "dist"):
        if all((place / name).is_file() for name in _RUNTIME):
            return place
    raise UserError(
        f"--runtime={printable(str(folder))} lacks {' or '.join(_RUNTIME)}: name the folder of the "
        f"npm package onnxruntime-web (`npm install onnxruntime-web@{_VERSION}`)"
    )


def with_runtime(folder: Path) -> Format:
    """Returns the format that copies the runtime beside the page; raises as `find_runtime`."""
    return FORMAT._replace(finish=functools.partial(_write_page, runtime=find_runtime(folder)))


def _adapt(subject: Subject) -> Subject:
    channels = subject.trained.image_shape[2]
    if channels not in (1, 3):
        raise UserError(f"--formats=web takes models of 1 or 3 channels: this one has {channels}")
    return onnx_file.FORMAT.adapt(subject)


def _write_page(subject: Subject, path: Path, runtime: Path | None = None) -> None:
    """Writes index.html beside the model, and the runtime's files if they are given."""
    address, sums = _ADDRESS, dict(_RUNTIME)
    if runtime is not None:
        address = "runtime/"
        (path.parent / address).mkdir(exist_ok=True)
        for name in sums:
            shutil.copyfile(runtime / name, path.parent / address / name)
            sums[name] = f"sha384-{_digest((runtime / name).read_bytes(), 'sha384')}"
    height, width, _ = subject.trained.image_shape
    facts = {
        "name": subject.name,
        "about": _describe(subject),
        "limits": _name_limits(subject.trained.class_names),
        "class_names": subject.trained.class_names,
        "image_shape": subject.trained.image_shape,
        "examples": _choose_examples(subject),
        "runtime": {
            "address": address,
            "files": [{"name": name, "integrity": own} for name, own in sums.items()],
        },
    }
    script, style = (f"\n{(_TEMPLATE / x).read_text('utf-8')}" for x in ("page.js", "page.css"))
    own = [f"'sha256-{_digest(text.encode(), 'sha256')}'" for text in (script, style)]
    policy = (
        f"default-src 'none'; script-src {own[0]} blob: 'wasm-unsafe-eval'; style-src {own[1]}; "
        f"img-src data:; connect-src 'self'{'' if runtime else ' ' + _ADDRESS}; base-uri 'none'; "
        "form-action 'none'"
    )
    page = Template((_TEMPLATE / "page.html").read_text("utf-8")).substitute(
        policy=policy,
        style=style,
        script=script,
        size=f"{width} x {height}",
        facts=json.dumps(facts).replace("<", "\\u003c"),  # text never ends the script element
    )
    files.write_text(path.parent / "index.html", page)


def _digest(data: bytes, name: str) -> str:
    return base64.b64encode(hashlib.new(name, data).digest()).decode()


def _describe(subject: Subject) -> str:
    config: dict[str, Any] = subject.about.get("config", {})
    trained_on = f", trained on {config['data']['name']}" if config else ""
    words = f"Classifies pictures into {len(subject.trained.class_names)} classes{trained_on}."
    if test := subject.about.get("test"):
        words += f" Right for {test['accuracy']:.2%} of {test['num_images']:,} test images."
    return words


def _name_limits(class_names: tuple[str, ...], most: int = 20) -> str:
    names = ", ".join(class_names[:most]) + (", …" if len(class_names) > most else "")
    return (
        f"The model knows only its {len(class_names)} classes ({names}). It names one of them for "
        "every picture, whatever is in it, and can be wrong while it is confident."
    )


def _choose_examples(subject: Subject) -> list[dict[str, str]]:
    """Returns the first test image of each class, up to ten, as PNGs; none of random images."""
    if subject.labels is None:
        return []
    _, places = np.unique(subject.labels, return_index=True)
    found = []
    for place in places[:_NUM_EXAMPLES]:
        image, stream = subject.images[place], io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")
        data = base64.b64encode(stream.getvalue()).decode()
        name = subject.trained.class_names[subject.labels[place]]
        found.append({"source": f"data:image/png;base64,{data}", "name": name})
    return found


FORMAT = onnx_file.FORMAT._replace(file="web/model.onnx", adapt=_adapt, finish=_write_page)
