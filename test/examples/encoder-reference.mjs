// PyTorch's nn.TransformerEncoder with norm_first, as plain loops in float64 over its state dict.

import { dot, multiply, softmax, weightedSum } from '../lib/oracle/rows.mjs';

/** Name and shape of all tensors of the state dict. */
export function stateShapes({ dim, hidden, layers }) {
  const perLayer = {
    'self_attn.in_proj_weight': [3 * dim, dim],
    'self_attn.in_proj_bias': [3 * dim],
    'self_attn.out_proj.weight': [dim, dim],
    'self_attn.out_proj.bias': [dim],
    'linear1.weight': [hidden, dim],
    'linear1.bias': [hidden],
    'linear2.weight': [dim, hidden],
    'linear2.bias': [dim],
    'norm1.weight': [dim],
    'norm1.bias': [dim],
    'norm2.weight': [dim],
    'norm2.bias': [dim],
  };
  const shapes = Array.from({ length: layers }, (_, l) =>
    Object.entries(perLayer).map(([name, shape]) => [`layers.${l}.${name}`, shape]),
  );
  return [...shapes.flat(), ['norm.weight', [dim]], ['norm.bias', [dim]]];
}

const plus = (a, b) => a.map((x, i) => x + b[i]);

export function affine(rows, weight, bias) {
  return rows.map((row) => plus(multiply(weight, bias.length, row), bias));
}

function layerNorm(rows, weight, bias) {
  return rows.map((row) => {
    const mean = row.reduce((sum, x) => sum + x / row.length, 0);
    const variance = row.reduce((sum, x) => sum + (x - mean) ** 2 / row.length, 0);
    return row.map((x, i) => ((x - mean) / Math.sqrt(variance + 1e-5)) * weight[i] + bias[i]);
  });
}

/** Multi-head attention of rows that hold query, key and value one after the other. */
function selfAttention(projected, dim, heads) {
  const headDim = dim / heads;
  const part = (row, which, head) => {
    const first = which * dim + head * headDim;
    return row.subarray(first, first + headDim);
  };
  return projected.map((row) => {
    const output = new Float64Array(dim);
    for (let head = 0; head < heads; ++head) {
      const query = part(row, 0, head);
      const logits = projected.map(
        (other) => dot(query, part(other, 1, head)) / Math.sqrt(headDim),
      );
      const values = projected.map((other) => part(other, 2, head));
      output.set(weightedSum(softmax(logits), values, headDim), head * headDim);
    }
    return output;
  });
}

/** The output rows of one sequence; `state` maps names to data. */
export function encode(state, { dim, heads, layers }, rows) {
  const norm = (x, name) => layerNorm(x, state.get(`${name}.weight`), state.get(`${name}.bias`));
  const linear = (x, name) => affine(x, state.get(`${name}.weight`), state.get(`${name}.bias`));
  let x = rows;
  for (let l = 0; l < layers; ++l) {
    const layer = `layers.${l}`;
    const [weight, bias] = ['weight', 'bias'].map((each) =>
      state.get(`${layer}.self_attn.in_proj_${each}`),
    );
    const projected = affine(norm(x, `${layer}.norm1`), weight, bias);
    const attended = selfAttention(projected, dim, heads);
    const y = linear(attended, `${layer}.self_attn.out_proj`).map((row, i) => plus(row, x[i]));
    const widened = linear(norm(y, `${layer}.norm2`), `${layer}.linear1`);
    const active = widened.map((row) => row.map((value) => Math.max(0, value)));
    x = linear(active, `${layer}.linear2`).map((row, i) => plus(row, y[i]));
  }
  return norm(x, 'norm');
}
