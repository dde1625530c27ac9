'use strict';
// The process that measures onnxruntime's attention on the CPU: the fused operator, or the three
// operators of its definition. See lib/bench/protocol.ts. onnxruntime is no dependency of this
// package; without its install script it brings its CPU library and downloads nothing:
//   npm install --no-save --ignore-scripts onnxruntime-node@1.30.0 onnx-proto@8.0.1

const { binding } = require('../../dist/binding.js');
const { setNumThreads } = require('../../dist/threads.js');
const { ExactRows, relativeL2, sampleRows } = require('../../dist/bench/accuracy.js');
const { countFlops } = require('../../dist/bench/flops.js');
const { loadInputs } = require('../../dist/bench/inputs.js');
const { repeatsFor, serve } = require('../../dist/bench/protocol.js');

const BOUND = 1e-4;

function packages() {
  try {
    return { onnx: require('onnx-proto').onnx, ort: require('onnxruntime-node') };
  } catch {
    return undefined;
  }
}

const MISSING =
  'npm install --no-save --ignore-scripts onnxruntime-node@1.30.0 onnx-proto@8.0.1 installs it';

const FLOAT = 1;
const INTEGER = 2; // types of elements and attributes have different numbers

const describeTensor = ([name, shape]) => ({
  name,
  type: {
    tensorType: { elemType: FLOAT, shape: { dim: shape.map((dimValue) => ({ dimValue })) } },
  },
});

const step = (opType, input, output, attribute = []) => ({
  opType,
  input,
  output: [output],
  attribute,
});

function encode(onnx, node, initializer, shapes) {
  const { output, ...inputs } = shapes;
  const graph = {
    name: 'attention',
    node,
    initializer,
    input: Object.entries(inputs).map(describeTensor),
    output: [describeTensor(['output', output])],
  };
  const opsetImport = [
    { domain: '', version: 17 },
    { domain: 'com.microsoft', version: 1 },
  ];
  return Buffer.from(onnx.ModelProto.encode({ irVersion: 8, opsetImport, graph }).finish());
}

/** One com.microsoft.MultiHeadAttention node over (batch, length, heads·dim). */
function fusedModel(onnx, { batch, heads, queryLength, keyLength, headDim, valueDim }) {
  const node = {
    opType: 'MultiHeadAttention',
    domain: 'com.microsoft',
    input: ['query', 'key', 'value'],
    output: ['output'],
    attribute: [{ name: 'num_heads', type: INTEGER, i: heads }],
  };
  return encode(onnx, [node], [], {
    query: [batch, queryLength, heads * headDim],
    key: [batch, keyLength, heads * headDim],
    value: [batch, keyLength, heads * valueDim],
    output: [batch, queryLength, heads * valueDim],
  });
}

/** softmax(τ Q Kᵀ) V in operators of their own, over (batch, heads, length, dim). */
function plainModel(onnx, { batch, heads, queryLength, keyLength, headDim, valueDim }) {
  const perm = [{ name: 'perm', type: 7, ints: [0, 1, 3, 2] }];
  const axis = [{ name: 'axis', type: INTEGER, i: -1 }];
  const nodes = [
    step('Transpose', ['key'], 'transposed', perm),
    step('Mul', ['query', 'scale'], 'scaled'),
    step('MatMul', ['scaled', 'transposed'], 'scores'),
    step('Softmax', ['scores'], 'weights', axis),
    step('MatMul', ['weights', 'value'], 'output'),
  ];
  const scale = { name: 'scale', dataType: FLOAT, dims: [], floatData: [1 / Math.sqrt(headDim)] };
  return encode(onnx, nodes, [scale], {
    query: [batch, heads, queryLength, headDim],
    key: [batch, heads, keyLength, headDim],
    value: [batch, heads, keyLength, valueDim],
    output: [batch, heads, queryLength, valueDim],
  });
}

/** (B,H,L,D) to (B,L,H,D). */
function interleaveHeads(source, { batch, heads }, length, dim) {
  const target = new Float32Array(source.length);
  for (let b = 0; b < batch; ++b) {
    for (let h = 0; h < heads; ++h) {
      for (let l = 0; l < length; ++l) {
        const from = ((b * heads + h) * length + l) * dim;
        target.set(source.subarray(from, from + dim), ((b * length + l) * heads + h) * dim);
      }
    }
  }
  return target;
}

function fusedFeeds(ort, { problem, query, key, value }) {
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = problem;
  const tensor = (data, length, dim) =>
    new ort.Tensor('float32', interleaveHeads(data, problem, length, dim), [
      batch,
      length,
      heads * dim,
    ]);
  return {
    query: tensor(query, queryLength, headDim),
    key: tensor(key, keyLength, headDim),
    value: tensor(value, keyLength, valueDim),
  };
}

function plainFeeds(ort, { problem, query, key, value }) {
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = problem;
  const tensor = (data, length, dim) =>
    new ort.Tensor('float32', data, [batch, heads, length, dim]);
  return {
    query: tensor(query, queryLength, headDim),
    key: tensor(key, keyLength, headDim),
    value: tensor(value, keyLength, valueDim),
  };
}

/** The relative L2 distance of sampled rows to exact attention in double precision. */
function errorOf(task, inputs, output, fused) {
  const { batch, heads, queryLength, valueDim } = inputs.problem;
  const exact = new ExactRows(inputs);
  const rows = sampleRows(batch * heads, queryLength, task.rows, task.seed);
  const pairs = rows.map((row) => {
    const [b, h] = [Math.floor(row.sequence / heads), row.sequence % heads];
    const place = fused
      ? (b * queryLength + row.query) * heads + h
      : row.sequence * queryLength + row.query;
    const actual = output.subarray(place * valueDim, (place + 1) * valueDim);
    return [actual, exact.at(row).output];
  });
  return { rows: rows.length, rounding: relativeL2(pairs), error: relativeL2(pairs) };
}

async function prepare(task) {
  const found = packages();
  const idle = { run() {} };
  if (found === undefined) return { ...idle, reply: { status: 'missing', reason: MISSING } };
  const { onnx, ort } = found;
  const { threads, method, problem } = task.case;
  const fused = method === 'MultiHeadAttention';
  const model = fused ? fusedModel(onnx, problem) : plainModel(onnx, problem);
  const session = await ort.InferenceSession.create(model, {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
  });
  setNumThreads(threads); // of the peak
  const inputs = loadInputs(task.input);
  const feeds = fused ? fusedFeeds(ort, inputs) : plainFeeds(ort, inputs);
  const run = async () => (await session.run(feeds)).output.data;
  const accuracy = errorOf(task, inputs, await run(), fused);
  if (!(accuracy.rounding <= BOUND)) {
    const reason = `the result is off by ${accuracy.rounding.toExponential(1)}`;
    return { ...idle, reply: { status: 'wrong', reason, accuracy } };
  }
  const start = performance.now();
  await run();
  const repeats = repeatsFor(performance.now() - start);
  const flop = countFlops('exact', problem, {}, false);
  const reply = { status: 'ready', accuracy, flop, repeats };
  return { reply, run, peak: () => binding.measurePeak() };
}

void serve(prepare);
