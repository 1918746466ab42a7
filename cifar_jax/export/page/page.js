"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const [height, width, channels] = facts.image_shape;
const find = (id) => document.getElementById(id);
const MOST_PIXELS = 50e6; // a larger picture is shrunk by the browser first

function say(text, error = false) {
  find("state").textContent = text;
  find("state").classList.toggle("error", error);
}

// The files of onnxruntime-web, checked against their sums; nothing else is loaded.
async function load(file) {
  const response = await fetch(facts.runtime.address + file.name, { integrity: file.integrity });
  if (!response.ok) throw new Error(`${file.name}: ${response.status}`);
  return response.arrayBuffer();
}

async function start() {
  const [code, binary] = await Promise.all(facts.runtime.files.map(load));
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const ort = await import(address);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = binary;
  const response = await fetch("model.onnx");
  if (!response.ok) throw new Error(`model.onnx: ${response.status}`);
  const session = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()));
  return async (pixels) => {
    const images = new ort.Tensor("uint8", pixels, [1, height, width, channels]);
    return (await session.run({ images }, ["probabilities"])).probabilities.data;
  };
}

// Bicubic weights (a = -0.5), widened when shrinking, for each place of the output: Keys (1981).
function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

function weigh(size, first, last, count) {
  const scale = (last - first) / count, wide = Math.max(scale, 1);
  return Array.from({ length: count }, (_, place) => {
    const center = first + (place + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(center - 2 * wide + 0.5));
    const end = Math.min(size, Math.trunc(center + 2 * wide + 0.5));
    const weights = [];
    for (let x = begin; x < end; x++) weights.push(bicubic((x - center + 0.5) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { begin, weights: weights.map((w) => w / sum) };
  });
}

// Returns one channel, [rows, columns], resized along its columns to `places.length`.
function resize(values, rows, columns, places) {
  const result = new Uint8ClampedArray(rows * places.length);
  for (let row = 0; row < rows; row++) {
    places.forEach(({ begin, weights }, place) => {
      let sum = 0;
      const from = row * columns + begin;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * values[from + k];
      result[row * places.length + place] = Math.round(sum);
    });
  }
  return result;
}

function transpose(values, rows, columns) {
  const result = new Uint8ClampedArray(values.length);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      result[column * rows + row] = values[row * columns + column];
  return result;
}

// Cuts the middle in the model's proportions and shrinks it; returns uint8 [height, width, channels].
function fit(image) {
  const { data, width: columns, height: rows } = image;
  const wide = columns * height >= rows * width;
  const [w, h] = wide ? [(width / height) * rows, rows] : [columns, columns / (width / height)];
  const [left, top] = [(columns - w) / 2, (rows - h) / 2];
  const across = weigh(columns, left, left + w, width);
  const down = weigh(rows, top, top + h, height);
  const pixels = new Uint8Array(height * width * channels);
  for (let channel = 0; channel < channels; channel++) {
    let values = new Uint8ClampedArray(rows * columns);
    for (let i = 0; i < values.length; i++) {
      const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
      const grey = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16; // ITU-R 601
      values[i] = channels === 1 ? grey : data[4 * i + channel];
    }
    if (w !== width || h !== height || columns !== width || rows !== height) {
      values = transpose(resize(values, rows, columns, across), rows, width);
      values = transpose(resize(values, width, rows, down), width, height);
    }
    values.forEach((value, i) => { pixels[i * channels + channel] = value; });
  }
  return pixels;
}

async function decode(blob) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const picture = await createImageBitmap(blob, options);
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (picture.width * picture.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * shrink));
  canvas.height = Math.max(1, Math.round(picture.height * shrink));
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "white"; // behind transparent parts
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return pen.getImageData(0, 0, canvas.width, canvas.height);
}

function draw(pixels) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[i * channels + (c % channels)];
    image.data[4 * i + 3] = 255;
  }
  for (const id of ["small", "large"]) {
    Object.assign(find(id), { width, height });
    find(id).getContext("2d").putImageData(image, 0, 0);
  }
}

function show(probabilities) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const lines = order.slice(0, 3).map((index) => {
    const share = `${(100 * probabilities[index]).toFixed(1)} %`;
    const [line, words, name, value, track, bar] =
      ["li", "div", "span", "span", "div", "div"].map((tag) => document.createElement(tag));
    name.textContent = facts.class_names[index];
    value.textContent = share;
    words.className = "words";
    words.append(name, value);
    track.className = "track";
    bar.style.width = share.replace(" ", "");
    track.append(bar);
    line.append(words, track);
    return line;
  });
  find("answers").replaceChildren(...lines);
  find("result").hidden = false;
  find("result").scrollIntoView({ block: "nearest" });
  document.body.dataset.probabilities = JSON.stringify([...probabilities]);
}

let latest = 0;
async function classify(blob, name) {
  const number = ++latest;
  delete document.body.dataset.probabilities;
  say(`Reading ${name} …`);
  let image;
  try {
    image = await decode(blob);
  } catch {
    if (number === latest) say(`${name} is not a picture that this browser can read.`, true);
    return;
  }
  try {
    const pixels = fit(image);
    const probabilities = await (await ready)(pixels);
    if (number !== latest) return;
    draw(pixels);
    show(probabilities);
    say(`${name}:`);
  } catch (error) {
    if (number === latest) say(`The model could not be run: ${error.message}`, true);
  }
}

function take(items) {
  const [file] = [...items].filter((item) => item instanceof File);
  if (file) classify(file, file.name || "The picture");
}

function fill() {
  find("title").textContent = document.title = facts.name;
  find("about").textContent = facts.about;
  find("limits").textContent = facts.limits;
  facts.examples.forEach(({ source, name }, index) => {
    const [button, image] = ["button", "img"].map((tag) => document.createElement(tag));
    Object.assign(image, { src: source, alt: `Example ${index + 1}: ${name}` });
    button.append(image);
    button.addEventListener("click", async () => {
      const bytes = Uint8Array.from(atob(source.split(",")[1]), (c) => c.charCodeAt(0));
      classify(new Blob([bytes], { type: "image/png" }), `Example ${index + 1} (${name})`);
    });
    find("examples").append(button);
  });
  find("choose").addEventListener("click", () => find("file").click());
  find("photograph").addEventListener("click", () => find("camera").click());
  for (const id of ["file", "camera"])
    find(id).addEventListener("change", (event) => {
      take(event.target.files);
      event.target.value = "";
    });
  const mark = (over) => (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", over);
  };
  document.addEventListener("dragover", mark(true));
  document.addEventListener("dragleave", mark(false));
  document.addEventListener("drop", (event) => {
    mark(false)(event);
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
}

fill();
say("Loading the model …");
const ready = start();
ready.then(
  () => { if (!latest) say("Ready."); },
  (error) => say(`The model could not be loaded: ${error.message}. Serve this folder over HTTP.`, true),
);
