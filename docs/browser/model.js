// The dual encoder, its weights in int8, by ONNX Runtime on WebAssembly: texts and drawings to unit vectors.

import * as ort from "./ort.wasm.min.mjs";
import { Tokenizer } from "./tokenizers.min.mjs";
import { pixelValues } from "./pixels.js";

const RUNTIME = "ort-wasm-simd-threaded.wasm.gz";
// Threads need headers that plain file servers do not send.
ort.env.wasm.numThreads = 1;

const json = async (name) => (await fetch(name)).json();
const files = {};

/** Return the bytes of a compressed file, which is read once; `onBytes` hears of what has come. */
function unzipped(name, onBytes = () => {}) {
  files[name] ??= (async () => {
    const response = await fetch(name);
    if (!response.ok) throw new Error(`${name}: the server answers ${response.status}`);
    const counted = new TransformStream({
      transform(chunk, controller) {
        onBytes(chunk.byteLength);
        controller.enqueue(chunk);
      },
    });
    const stream = response.body.pipeThrough(counted).pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  })();
  return files[name];
}

const sessions = {};

function session(graph, onBytes) {
  sessions[graph] ??= (async () => {
    const content = unzipped(`${graph}.onnx.gz`, onBytes);
    ort.env.wasm.wasmBinary ??= await unzipped(RUNTIME, onBytes);
    // More would round activations where it multiplies by weights in int8.
    return ort.InferenceSession.create(new Uint8Array(await content), { graphOptimizationLevel: "basic" });
  })();
  return sessions[graph];
}

const settings = json("onnx.json");
const tokenizer = Promise.all([json("tokenizer.json"), json("tokenizer_config.json")]).then(
  ([model, config]) => new Tokenizer(model, config),
);

/** Load what a text needs, so that the first search waits for nothing else. */
export async function loadTextEncoder(onBytes) {
  await Promise.all([tokenizer, settings, session("text_encoder", onBytes)]);
}

export const loadImageEncoder = () => session("image_encoder");

/** Return the vector of a text; what is longer than the model's text is cut, its last token kept. */
export async function embedText(text) {
  const { max_length: longest } = (await settings).text;
  let { ids } = (await tokenizer).encode(text);
  if (ids.length > longest) ids = [...ids.slice(0, longest - 1), ids.at(-1)];
  const row = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
  const encoder = await session("text_encoder");
  const outputs = await encoder.run({ input_ids: row(ids), attention_mask: row(ids.map(() => 1)) });
  return outputs.text_embeds.data;
}

/** Return the vector of an opaque image, given as a canvas's ImageData. */
export async function embedImage(image) {
  const { image: preparation } = await settings;
  const values = pixelValues(image, preparation);
  const encoder = await session("image_encoder");
  const shape = [1, 3, ...preparation.size];
  const outputs = await encoder.run({ pixel_values: new ort.Tensor("float32", values, shape) });
  return outputs.image_embeds.data;
}
