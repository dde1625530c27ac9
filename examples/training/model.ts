/**
 * A transformer encoder with a classifier on top, of every token or of the whole sequence. Its
 * layers are those of PyTorch's `nn.TransformerEncoder` with `norm_first`, and their parameters have
 * the names and shapes that they have there, so that the weights of one fit the other.
 */
import { makeAttention, type Attend, type AttentionSizes, type Kind } from './attention';
import {
  add,
  crossEntropy,
  embed,
  layerNorm,
  linear,
  meanOfRows,
  relu,
  type Verdict,
} from './layers';
import { Parameters, rowsOf, type Parameter } from './parameters';
import type { Random } from './random';

/** What a task asks of a model. */
export interface Question {
  readonly vocabulary: number;
  readonly classes: number;
  readonly length: number;
  /** Whether every token has a target; else one per sequence. */
  readonly perToken: boolean;
}

export interface Batch {
  readonly tokens: Int32Array; // (B,L)
  readonly targets: Int32Array; // (B,L) or (B), -1: not asked
  readonly lengths?: Int32Array; // (B), real tokens
}

export interface ModelSizes {
  readonly dim: number;
  readonly heads: number;
  readonly hidden: number;
  readonly layers: number;
}

/** A matrix and what is added to its product; of a layer norm, scale and shift. */
interface Affine {
  readonly weight: Parameter;
  readonly bias: Parameter;
}

interface EncoderLayer {
  readonly attend: Attend;
  readonly norm1: Affine;
  readonly query: Affine;
  readonly key: Affine;
  readonly value: Affine;
  readonly outProj: Affine;
  readonly norm2: Affine;
  readonly linear1: Affine;
  readonly linear2: Affine;
}

export class Model {
  readonly parameters: Parameters;
  readonly #question: Question;
  readonly #sizes: ModelSizes;
  readonly #tokens: Parameter;
  readonly #positions: Parameter;
  readonly #layers: EncoderLayer[] = [];
  readonly #norm: Affine;
  readonly #classifier: Affine;

  constructor(kind: Kind, question: Question, sizes: ModelSizes, random: Random) {
    this.parameters = new Parameters(random);
    this.#question = question;
    this.#sizes = sizes;
    const { dim } = sizes;
    this.#tokens = this.parameters.normal('tokens.weight', [question.vocabulary, dim], 1);
    this.#positions = this.parameters.normal('positions.weight', [question.length, dim], 1);
    for (let l = 0; l < sizes.layers; ++l) this.#layers.push(this.#encoderLayer(kind, l));
    this.#norm = this.#layerNorm('norm');
    this.#classifier = this.#affine('classifier', question.classes, dim);
  }

  /** Loss and accuracy on a batch; its gradients are added to the parameters' when `learn`. */
  run(batch: Batch, learn: boolean): Verdict {
    const { length, classes, perToken } = this.#question;
    const { dim, heads } = this.#sizes;
    const count = batch.tokens.length / length;
    const sizes = { batch: count, length, heads, headDim: dim / heads };
    const embedding = embed(batch.tokens, length, this.#tokens, this.#positions);
    let x = embedding.output;
    const steps = this.#layers.map((layer) => {
      const step = encode(layer, sizes, x, batch.lengths);
      x = step.output;
      return step;
    });
    const norm = normalise(x, this.#norm);
    const lengths = batch.lengths ?? new Int32Array(count).fill(length);
    const pooled = perToken ? undefined : meanOfRows(norm.output, lengths, dim);
    const { weight, bias } = this.#classifier;
    const logits = linear(pooled?.output ?? norm.output, weight, bias);
    const verdict = crossEntropy(logits.output, batch.targets, classes);
    if (!learn) return verdict;

    const classified = logits.backward(verdict.gradient);
    let gradient = norm.backward(pooled?.backward(classified) ?? classified);
    for (const step of steps.toReversed()) gradient = step.backward(gradient);
    embedding.backward(gradient);
    return verdict;
  }

  #encoderLayer(kind: Kind, number: number): EncoderLayer {
    const { dim, heads, hidden } = this.#sizes;
    const { length } = this.#question;
    const sizes: AttentionSizes = { batch: 1, length, heads, headDim: dim / heads };
    const name = `layers.${number}`;
    const attend = makeAttention(kind, this.parameters, `attention.${number}`, sizes);
    const norm1 = this.#layerNorm(`${name}.norm1`);
    // One matrix holds the projections to query, key and value, in this order.
    const weight = this.parameters.weight(`${name}.self_attn.in_proj_weight`, 3 * dim, dim);
    const bias = this.parameters.vector(`${name}.self_attn.in_proj_bias`, 3 * dim, 0);
    const projection = (i: number): Affine => ({
      weight: rowsOf(weight, i * dim, dim),
      bias: rowsOf(bias, i * dim, dim),
    });
    return {
      attend,
      norm1,
      query: projection(0),
      key: projection(1),
      value: projection(2),
      outProj: this.#affine(`${name}.self_attn.out_proj`, dim, dim),
      norm2: this.#layerNorm(`${name}.norm2`),
      linear1: this.#affine(`${name}.linear1`, hidden, dim),
      linear2: this.#affine(`${name}.linear2`, dim, hidden),
    };
  }

  #affine(name: string, outputs: number, inputs: number): Affine {
    return {
      weight: this.parameters.weight(`${name}.weight`, outputs, inputs),
      bias: this.parameters.vector(`${name}.bias`, outputs, 0),
    };
  }

  #layerNorm(name: string): Affine {
    const { dim } = this.#sizes;
    return {
      weight: this.parameters.vector(`${name}.weight`, dim, 1),
      bias: this.parameters.vector(`${name}.bias`, dim, 0),
    };
  }
}

const normalise = (x: Float32Array, { weight, bias }: Affine) => layerNorm(x, weight, bias);
const apply = (x: Float32Array, { weight, bias }: Affine) => linear(x, weight, bias);

/** x + attention(norm(x)), then y + feed-forward(norm(y)). */
function encode(
  layer: EncoderLayer,
  sizes: AttentionSizes,
  x: Float32Array,
  lengths: Int32Array | undefined,
) {
  const norm1 = normalise(x, layer.norm1);
  const query = apply(norm1.output, layer.query);
  const key = apply(norm1.output, layer.key);
  const value = apply(norm1.output, layer.value);
  const projections = { query: query.output, key: key.output, value: value.output };
  const attention = layer.attend(sizes, projections, norm1.output, lengths);
  const mixed = apply(attention.output, layer.outProj);
  const y = add(x, mixed.output);

  const norm2 = normalise(y, layer.norm2);
  const widened = apply(norm2.output, layer.linear1);
  const active = relu(widened.output);
  const narrowed = apply(active.output, layer.linear2);
  const output = add(y, narrowed.output);

  const backward = (gradient: Float32Array): Float32Array => {
    const inner = widened.backward(active.backward(narrowed.backward(gradient)));
    const byY = add(gradient, norm2.backward(inner));
    const by = attention.backward(mixed.backward(byY));
    let hidden = add(query.backward(by.query), key.backward(by.key));
    hidden = add(hidden, value.backward(by.value));
    if (by.hidden !== undefined) hidden = add(hidden, by.hidden);
    return add(byY, norm1.backward(hidden));
  };
  return { output, backward };
}
