"""The page that classifies pictures in a browser."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from cifar_jax.data import photos
from cifar_jax.errors import UserError
from cifar_jax.export import export, web
from tests import browser, program
from tests.export.test_files import make_subject, need_onnx

CLASSES = ("</script><b>cat", "dog & $name", *"cdefghij")
WIDTHS = (360, 820, 1400)
# Gives the page each picture, at the first width, and collects its answers; then looks at the page
# at every width.
DRIVER = """<!DOCTYPE html><link rel="icon" href="data:,"><body><script>
const until = async (test) => {
  for (let i = 0; i < 600; i++) {
    const value = test();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`waited for ${test}`);
};
const open = async (width) => {
  const frame = document.createElement("iframe");
  Object.assign(frame, { src: "/index.html", width, height: 900 });
  document.body.append(frame);
  await new Promise((resolve) => { frame.onload = resolve; });
  return frame.contentDocument;
};
const give = async (page, name, type) => {
  const blob = await (await fetch(`/pictures/${name}`)).blob();
  const data = new page.defaultView.DataTransfer();
  data.items.add(new page.defaultView.File([blob], name, { type }));
  page.getElementById("file").files = data.files;
  page.getElementById("file").dispatchEvent(new Event("change"));
};
(async () => {
  const page = await open(WIDTHS[0]), answers = {}, views = [];
  for (const name of NAMES) {
    await give(page, name, "image/png");
    const found = await until(() => page.body.dataset.probabilities);
    answers[name] = JSON.parse(found);
    delete page.body.dataset.probabilities;
  }
  const first = page.querySelector("#answers li span").textContent;
  await give(page, "broken.png", "image/png");
  const problem = await until(() => page.querySelector("#state.error")).then((x) => x.textContent);
  const example = page.querySelector("#examples button");
  let pressed = null;
  if (example) {
    example.focus();
    example.click();
    pressed = JSON.parse(await until(() => page.body.dataset.probabilities));
  }
  for (const width of WIDTHS) {
    const shown = await open(width), root = shown.documentElement;
    await give(shown, NAMES[0], "image/png");
    await until(() => shown.body.dataset.probabilities);
    views.push({ width, scroll: root.scrollWidth, client: root.clientWidth,
      ground: shown.defaultView.getComputedStyle(shown.body).backgroundColor });
  }
  return { answers, first, problem, pressed, views };
})().catch((error) => ({ error: String(error) })).then((found) =>
  fetch("/seen", { method: "POST", body: JSON.stringify(found) }));
</script>"""


@pytest.fixture
def runtime(tmp_path):
    """A folder with files in the place of onnxruntime-web's."""
    folder = tmp_path / "package" / "dist"
    folder.mkdir(parents=True)
    for name in web._RUNTIME:
        (folder / name).write_bytes(name.encode())
    return folder.parent


def write_page(folder, runtime=None, labelled=True):
    """Writes the page of a model with random weights, without its ONNX file; returns its text."""
    subject = make_subject("simple_cnn")
    labels = np.arange(40) % 10 if labelled else None
    trained = subject.trained._replace(class_names=CLASSES)
    test = {"accuracy": 0.9138, "num_images": 10000}
    subject = subject._replace(trained=trained, labels=labels, about={"test": test})
    kind = web.with_runtime(runtime) if runtime else web.FORMAT
    folder.mkdir(exist_ok=True)
    kind.finish(subject, folder / "model.onnx")
    return (folder / "index.html").read_text(), subject


def read_facts(text):
    return json.loads(re.search(r'id="facts">(.*?)</script>', text, re.S)[1])


def test_the_page_states_the_model_and_keeps_names_as_text(tmp_path):
    text, subject = write_page(tmp_path)
    facts = read_facts(text)
    assert text.count("</script>") == 2
    assert tuple(facts["class_names"]) == CLASSES
    assert facts["about"].endswith("into 10 classes. Right for 91.38% of 10,000 test images.")
    assert "only its 10 classes (</script><b>cat, dog & $name, c," in facts["limits"]
    assert [example["name"] for example in facts["examples"]] == list(CLASSES)
    for number, example in enumerate(facts["examples"]):
        png = base64.b64decode(example["source"].partition(",")[2])
        np.testing.assert_array_equal(Image.open(io.BytesIO(png)), subject.images[number])
    assert read_facts(write_page(tmp_path, labelled=False)[0])["examples"] == []


def test_the_policy_admits_the_page_itself_and_the_runtime_alone(tmp_path, runtime):
    text, _ = write_page(tmp_path / "a")
    policy = re.search(r'Policy" content="([^"]*)"', text)[1]
    for tag, kind in (("script", "script-src"), ("style", "style-src")):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    address = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{web._VERSION}/dist/"
    assert f"connect-src 'self' {address};" in policy
    assert read_facts(text)["runtime"]["address"] == address
    assert not re.findall(r"<(?:script|link|img)[^>]* (?:src|href)=\"(?!data:)", text)
    text, _ = write_page(tmp_path / "b", runtime)
    assert "connect-src 'self';" in text
    assert "https://" not in text
    (code, _) = read_facts(text)["runtime"]["files"]
    data = (tmp_path / "b" / "runtime" / code["name"]).read_bytes()
    digest = base64.b64encode(hashlib.sha384(data).digest()).decode()
    assert (data, code["integrity"]) == (code["name"].encode(), f"sha384-{digest}")


def test_what_cannot_become_a_page_is_named(tmp_path):
    with pytest.raises(UserError, match=r"lacks ort\.wasm\.bundle\.min\.mjs or ort-wasm.*npm inst"):
        web.with_runtime(tmp_path)
    subject = make_subject("simple_cnn")
    four = subject.trained._replace(image_shape=(32, 32, 4))
    with pytest.raises(UserError, match="web takes models of 1 or 3 channels: this one has 4"):
        web.FORMAT.adapt(subject._replace(trained=four))
    need_onnx()
    flags = ("--formats=safetensors", f"--runtime={tmp_path}")
    code, _, err = program.run_here("--mode=export", "--workdir=pretrained:mlp", *flags)
    assert (code, err) == (2, "error: --runtime is only for --formats=web\n")


def write_pictures(folder):
    """Writes twenty pictures of all sizes, proportions, kinds and rotations."""
    folder.mkdir()
    scenes = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    sizes = ((640, 427), (427, 640), (32, 32), (31, 200), (200, 33), (15, 20), (640, 64))
    kinds = (("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("RGB", "webp"))
    rng = np.random.default_rng(0)
    for number in range(20):
        (width, height), (mode, kind) = sizes[number % 7], kinds[number % 5]
        scene = scenes[number % 2].resize((640 + width, 427 + height))
        left, top = rng.integers(0, 640), rng.integers(0, 427)
        picture = scene.crop((left, top, left + width, top + height)).convert(mode)
        if mode == "RGBA":
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        options = {"lossless": True} if kind == "webp" else {}
        if kind == "jpg":
            exif = Image.Exif()
            exif[0x0112] = 1 + number % 8  # the orientation
            options = {"exif": exif, "quality": 95}
        picture.save(folder / f"{number:02}.{kind}", **options)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """The npm package onnxruntime-web: of $ORT_WEB, or fetched by npm."""
    if given := os.environ.get("ORT_WEB"):
        return Path(given)
    if shutil.which("npm") is None:
        pytest.skip("needs npm, or the folder of onnxruntime-web in ORT_WEB")
    folder = tmp_path_factory.mktemp("npm")
    name = f"onnxruntime-web@{web._VERSION}"
    command = ["npm", "pack", "--silent", name]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip(f"npm cannot fetch {name}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, "gztar", filter="data")
    return folder / "package"


@pytest.mark.slow
@pytest.mark.skipif(browser.BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("dark", [False, True])
def test_the_browser_answers_as_predict_does(tmp_path, package, dark):
    need_onnx()
    subject = make_subject("simple_cnn", temperature=0.2)
    trained = subject.trained._replace(class_names=CLASSES)
    subject = subject._replace(trained=trained, labels=np.arange(40) % 10)
    probabilities = trained.probabilities(subject.logits)
    subject = subject._replace(probabilities=probabilities)
    export.write_checked(web.with_runtime(package), subject, tmp_path)
    folder = tmp_path / "web"
    paths = write_pictures(tmp_path / "pictures")
    pictures = {f"/pictures/{path.name}": path.read_bytes() for path in paths}
    files = {f"/{x.relative_to(folder)}": x.read_bytes() for x in folder.rglob("*") if x.is_file()}
    names = json.dumps([path.name for path in paths])
    driver = DRIVER.replace("NAMES", names).replace("WIDTHS", str(list(WIDTHS))).encode()
    bodies = {"/": driver, "/pictures/broken.png": b"no picture", **pictures, **files}
    found, asked, console = browser.visit(bodies, tmp_path / "profile", dark, seconds=300)
    assert "error" not in found, found
    assert console == []
    own = {"/index.html", "/model.onnx", *(f"/runtime/{name}" for name in web._RUNTIME)}
    assert {path for path in asked if not path.startswith("/pictures/")} == {"/", *own}
    read = [photos.fit(photos.read_picture(str(path)), (32, 32, 3)) for path in paths]
    expected = trained.predict(np.stack(read))
    answers = np.array([found["answers"][path.name] for path in paths])
    assert (answers.argmax(axis=1) == expected.argmax(axis=1)).all()
    np.testing.assert_allclose(answers, expected, atol=0.03)
    assert np.ptp(expected, axis=0).max() > 0.1  # the pictures differ
    assert found["first"] == CLASSES[answers[-1].argmax()]
    assert found["problem"] == "broken.png is not a picture that this browser can read."
    np.testing.assert_allclose(found["pressed"], probabilities[0], atol=1e-4)
    for view in found["views"]:
        assert view["scroll"] <= view["client"], view
        assert view["ground"] == ("rgb(18, 20, 23)" if dark else "rgb(243, 244, 246)")
